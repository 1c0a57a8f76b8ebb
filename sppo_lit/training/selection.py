"""Which problems of a pool are answered: those that the policy is predicted to solve about half of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sppo_lit.algorithms.batching import pad_rows
from sppo_lit.algorithms.selection import nearest
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.algorithms.tracking import BaselineMemory
from sppo_lit.distributed.collectives import gathered
from sppo_lit.errors import InputError
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.settings import SelectSettings
from sppo_lit.training.passes import ValueReader
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Encoded, Problem, Sequences


class ProblemSelector:
    """Chooses the problems of an iteration from a pool, by the weights and outcomes before it.

    The choice is over the whole pool, the same on every rank. A critic reads each rank's share of the prompts once.

    Args:
        settings: what predicts success, and the target.
        values: computes the critic's V; None without a critic of prompts.
        memory: remembers past outcomes; None without.
        runtime: runtime of this rank.
        timer: measures the phase "select".
    """

    def __init__(
        self,
        settings: SelectSettings,
        values: ValueReader | None,
        memory: BaselineMemory | None,
        runtime: Runtime,
        timer: PhaseTimer,
    ) -> None:
        self._settings, self._values, self._memory = settings, values, memory
        self._runtime, self._timer = runtime, timer
        self._metrics: dict[str, float] = {}

    def choose(self, draw: Callable[[], Sequence[Encoded]], count: int) -> list[Encoded]:
        """The chosen problems, in the order of the pool. Collective.

        Args:
            draw: makes the pool, the same on every rank; its time counts as that of the choice.
            count: problems of the iteration, over all ranks.
        """
        with self._timer("select"):
            pool = draw()
            predicted = self._predicted(pool)
            chosen = nearest(predicted, self._settings.target, count, [problem.key for problem, _ in pool])
        means = {"pool": predicted.nanmean(), "chosen": predicted[chosen].nanmean()}
        self._metrics = {f"select/{name}_mean": float(mean) for name, mean in means.items()}
        return [pool[i] for i in chosen.tolist()]

    def end_iteration(self) -> dict[str, float]:
        """Mean predicted success of the iteration's pool and of the chosen; empty without a choice."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _predicted(self, pool: Sequence[Encoded]) -> Tensor:
        """Predicted success of each problem, [P] float32 on the CPU, the same bits on every rank."""
        if self._settings.by == "tracker":
            assert self._memory is not None
            return self._memory.read(prompt_keys([problem for problem, _ in pool]))
        assert self._values is not None
        rank, ranks = self._runtime.rank, self._runtime.ranks
        own = self._values.read(prompts_alone([ids for _, ids in pool[rank::ranks]], self._runtime.device))
        return gathered(own).view(ranks, -1).T.reshape(-1).cpu()


def prompts_alone(prompts: Sequence[Sequence[int]], device: torch.device) -> Sequences:
    """Prompts without responses, as a critic of prompts reads them.

    Args:
        prompts: token ids of each prompt, B of them.
        device: where the tensors go.

    Returns:
        B sequences, with responses of shape [B, 0].
    """
    return Sequences(*pad_rows(prompts, device), *pad_rows([[] for _ in prompts], device))


def prompt_keys(problems: Sequence[Problem]) -> Tensor:
    """A key of each problem's prompt, [B] int64; the same in every run."""
    return torch.tensor([sequence_key(problem.key) - 2**63 for problem in problems])


def check_selection(select: SelectSettings, spec: AlgorithmSpec | None) -> None:
    """Check that there is something to choose by.

    Args:
        select: the recipe's.
        spec: the algorithm; None in supervised training.

    Raises:
        InputError: the algorithm has no critic that values prompts, or nothing is sampled.
    """
    if select.by == "none":
        return
    if spec is None:
        raise InputError("data.select: supervised training learns every problem it draws; leave it out")
    if select.by == "critic" and spec.critic != "scalar":
        raise InputError(
            f"data.select.by is critic, but {spec.title} has no critic that values prompts; set it to tracker, or "
            "leave it out"
        )
