"""One literal table of the algorithms: what differs between them is data, not a branch in the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sppo_lit.algorithms import advantages, losses
from sppo_lit.algorithms.masking import Aggregation


@dataclass(frozen=True)
class AlgorithmSpec:
    """What makes one algorithm different from another.

    Attributes:
        title: for people.
        advantage: (rewards [B], values [B]) -> A [B], float32.
        critic: what the critic predicts: nothing, one logit per prompt, or one per token.
        critic_loss: (logits, labels) -> loss per element, for the critic's shape.
        samples_per_prompt: responses drawn for each problem.
        aggregation: how token losses become one number.
    """

    title: str
    advantage: Callable[[Tensor, Tensor], Tensor]
    critic: Literal["none", "scalar", "token"]
    critic_loss: Callable[[Tensor, Tensor], Tensor] | None
    samples_per_prompt: int
    aggregation: Aggregation


ALGORITHMS: dict[str, AlgorithmSpec] = {
    "sppo": AlgorithmSpec(
        title="Sequence-Level PPO",
        advantage=advantages.sequence_level,
        critic="scalar",
        critic_loss=losses.critic_bce,
        samples_per_prompt=1,
        aggregation="token-mean",
    ),
}
