"""One literal table of the algorithms: what differs between them is data, not a branch in the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sppo_lit.algorithms import losses
from sppo_lit.algorithms.advantages import (
    Outcomes,
    gae,
    greedy_baseline,
    group_centred,
    group_normalised,
    iteration_baseline,
    leave_one_out,
    length_adaptive_lam,
    mixed_baseline,
    returns_to_go,
    sequence_level,
)
from sppo_lit.algorithms.tracking import BaselineMemory, PromptTracker
from sppo_lit.errors import InputError
from sppo_lit.settings import PPOSettings
from sppo_lit.types import Aggregation
from sppo_lit.utils.objects import load_object, names_object


@dataclass(frozen=True)
class AlgorithmSpec:
    """What makes one algorithm different from another.

    Attributes:
        title: for people.
        short: for the legends of figures; the title where empty.
        advantage: outcomes of an iteration -> A, [B] or [B, T] float32.
        critic: what the critic predicts: nothing, one number per prompt (from the prompt alone), or one per token.
        link: from the critic's output to V, elementwise.
        policy_loss: per token, from log-probabilities, old ones and advantages (`losses.PolicyLoss`).
        clip_low: ε below 1 of the clip range, unless a recipe sets it.
        clip_high: ε above 1, unless a recipe sets it.
        critic_loss: (outputs, targets, values before the update, clip) -> loss per element, in the critic's shape.
        samples_per_prompt: N, responses drawn for each problem.
        lam: λ of token-level advantages, or a function of the response lengths [B] -> [B], unless a recipe sets it.
        critic_lam: λ of the returns that a token-level critic learns; that of the advantages where None.
        memory: makes the state that takes the critic's place as V(s_p): it is kept over the iterations and learns the
            verdicts. None without.
        greedy: also take the greedy response to each problem, for its reward.
        whiten: shift and scale the advantages to mean 0 and variance 1 over the iteration.
        aggregation: how token losses become one number.
    """

    title: str
    advantage: Callable[[Outcomes], Tensor]
    critic: Literal["none", "scalar", "token"] = "none"
    link: Callable[[Tensor], Tensor] = losses.identity
    policy_loss: losses.PolicyLoss = losses.clipped_surrogate
    clip_low: float = 0.2
    clip_high: float = 0.2
    critic_loss: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    samples_per_prompt: int = 1
    lam: float | Callable[[Tensor], Tensor] = 1.0
    critic_lam: float | None = None
    memory: Callable[[], BaselineMemory] | None = None
    greedy: bool = False
    whiten: bool = False
    aggregation: Aggregation = "token-mean"
    short: str = ""

    @property
    def label(self) -> str:
        """The name in legends of figures."""
        return self.short or self.title

    def surrogate(self, ppo: PPOSettings) -> Callable[[Tensor, Tensor, Tensor, Tensor], losses.PolicyTerms]:
        """The policy loss with a recipe's clip ranges.

        Args:
            ppo: the recipe's; what is None there is the algorithm's own.

        Returns:
            (log-probabilities [B, T], old ones [B, T], advantages [B] or [B, T], mask [B, T]) -> terms, [B, T] each.
        """
        return partial(
            self.policy_loss,
            clip_low=self.clip_low if ppo.clip_low is None else ppo.clip_low,
            clip_high=self.clip_high if ppo.clip_high is None else ppo.clip_high,
            dual_clip=ppo.dual_clip,
        )


def _gae(o: Outcomes) -> Tensor:
    return gae(o.rewards, o.values, o.lengths, gamma=o.gamma, lam=o.lam, costs=o.costs)


ALGORITHMS: dict[str, AlgorithmSpec] = {
    "sppo": AlgorithmSpec(
        title="Sequence-Level PPO",
        short="SPPO",
        advantage=lambda o: mixed_baseline(o.totals, o.values, o.samples, o.value_weight),
        critic="scalar",
        link=torch.sigmoid,
        critic_loss=losses.critic_bce,
    ),
    "ppo": AlgorithmSpec(
        title="PPO",
        advantage=_gae,
        critic="token",
        critic_loss=losses.critic_clipped_mse,
        whiten=True,
    ),
    "ppo_bce": AlgorithmSpec(
        title="PPO+BCE",
        advantage=_gae,
        critic="token",
        link=torch.sigmoid,
        critic_loss=losses.critic_bce,
        whiten=True,
    ),
    "vc_ppo": AlgorithmSpec(
        title="VC-PPO",
        advantage=_gae,
        critic="token",
        critic_loss=losses.critic_clipped_mse,
        whiten=True,
        lam=length_adaptive_lam,
        critic_lam=1.0,
    ),
    "grpo": AlgorithmSpec(
        title="GRPO",
        advantage=lambda o: group_normalised(o.totals, o.samples),
        samples_per_prompt=8,
    ),
    "gspo": AlgorithmSpec(
        title="GSPO",
        advantage=lambda o: group_normalised(o.totals, o.samples),
        samples_per_prompt=8,
        policy_loss=losses.sequence_surrogate,
        clip_low=3e-4,
        clip_high=4e-4,
        aggregation="seq-mean-token-mean",
    ),
    "dr_grpo": AlgorithmSpec(
        title="Dr. GRPO",
        advantage=lambda o: group_centred(o.totals, o.samples),
        samples_per_prompt=8,
        aggregation="seq-mean-token-sum-norm",
    ),
    "rloo": AlgorithmSpec(
        title="RLOO",
        advantage=lambda o: leave_one_out(o.totals, o.samples),
        samples_per_prompt=5,
    ),
    "remax": AlgorithmSpec(
        title="ReMax",
        advantage=lambda o: greedy_baseline(o.totals, o.greedy),
        greedy=True,
    ),
    "reinforce": AlgorithmSpec(
        title="REINFORCE",
        advantage=lambda o: iteration_baseline(o.totals, o.sum_over_ranks),
    ),
    "reinforce_pp": AlgorithmSpec(
        title="REINFORCE++",
        advantage=lambda o: returns_to_go(o.rewards, o.lengths, o.gamma, o.costs),
        whiten=True,
    ),
    "spo": AlgorithmSpec(
        title="SPO",
        advantage=lambda o: sequence_level(o.totals, o.values),
        memory=PromptTracker,
        whiten=True,
    ),
}


def algorithm(name: str) -> AlgorithmSpec:
    """The row that `model.algorithm` names: one of `ALGORITHMS`, or a user's own.

    Args:
        name: a key of `ALGORITHMS`, or an `AlgorithmSpec` as ``package.module.name`` or ``path/to/file.py:name``.

    Raises:
        InputError: there is none of that name, or it is not an `AlgorithmSpec`.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if not names_object(name):
        raise InputError(
            f"model.algorithm {name!r} is unknown; choose one of: {', '.join(ALGORITHMS)}, or name your own "
            "(path/to/file.py:SPEC)"
        )
    spec = load_object(name, "model.algorithm")
    if not isinstance(spec, AlgorithmSpec):
        raise InputError(f"model.algorithm {name!r}: a {type(spec).__name__}, not an AlgorithmSpec; make one of it")
    return spec
