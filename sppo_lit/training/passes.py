"""Forward passes without gradient over a whole batch: values of the critic, log-probabilities of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.policy import Policy
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Sequences


class ValueReader:
    """Computes V with the critic.

    Args:
        critic: scalar or token-level critic.
        link: maps its output to V, elementwise.
        budget: token budget of one forward pass.
        runtime: runtime of this rank.
        timer: receives the progress.
    """

    def __init__(
        self,
        critic: ScalarCritic | TokenCritic,
        link: Callable[[Tensor], Tensor],
        budget: TokenBudget,
        runtime: Runtime,
        timer: PhaseTimer,
    ) -> None:
        self._critic, self._link, self._budget = critic, link, budget
        self._runtime, self._timer = runtime, timer

    @torch.no_grad()
    def read(self, sequences: Sequences) -> Tensor:
        """V of every sequence: [B] float32 of a scalar critic, [B, T] of a token-level one, zeros on padding."""
        values = torch.zeros_like(self._critic.mask(sequences), dtype=torch.float32)
        pieces = self._budget.cut(torch.arange(len(sequences)), self._critic.lengths(sequences))
        self._runtime.join_passes(self._critic, len(pieces))
        with self._runtime.autocast():
            for i, rows in enumerate(pieces):
                piece = sequences.select(rows)
                outputs = self._link(self._critic(*self._critic.inputs(piece))).to(values.dtype)
                outputs = torch.where(self._critic.mask(piece), outputs, 0.0)
                if outputs.ndim == 2:
                    values[rows, : outputs.shape[1]] = outputs
                else:
                    values[rows] = outputs
                self._timer.report("values", i + 1, len(pieces))
        return values

    def join(self) -> None:
        """Take part in the other ranks' passes without sequences; they are collective under sharding."""
        self._runtime.join_passes(self._critic, 0)


@torch.no_grad()
def read_logprobs(
    policy: Policy,
    sequences: Sequences,
    pieces: Sequence[Tensor],
    temperature: float,
    runtime: Runtime,
    into: Tensor,
) -> None:
    """Write a policy's log-probabilities of some rows into a tensor; the caller sets the precision.

    Args:
        policy: the policy.
        sequences: B sequences with T response tokens.
        pieces: rows of each forward pass, [N] int64 each.
        temperature: divides the logits.
        runtime: runtime of this rank.
        into: target, [B, T] float.
    """
    runtime.join_passes(policy, len(pieces))
    for rows in pieces:
        logprobs = policy(*sequences.select(rows).tokens, temperature).logprobs
        into[rows, : logprobs.shape[1]] = logprobs.to(into.dtype)
