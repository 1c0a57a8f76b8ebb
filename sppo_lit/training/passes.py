"""Forward passes without gradient over a whole batch: values of the critic, log-probabilities of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sppo_lit.distributed.sharding import is_sharded
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.policy import Policy
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.runtime import Network, Runtime
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Sequences
from sppo_lit.utils.out_of_memory import is_out_of_memory, release_reserve


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
        lengths = self._critic.lengths(sequences)

        def read(rows: Tensor) -> None:
            piece = sequences.select(rows)
            outputs = self._link(self._critic(*self._critic.inputs(piece))).to(values.dtype)
            outputs = torch.where(self._critic.mask(piece), outputs, 0.0)
            if outputs.ndim == 2:
                values[rows, : outputs.shape[1]] = outputs
            else:
                values[rows] = outputs

        with self._runtime.autocast():
            pieces = self._budget.cut(torch.arange(len(sequences)), lengths)
            for done, total in passes(self._critic, pieces, lengths, self._budget, self._runtime, read):
                self._timer.report("values", done, total)
        return values

    def join(self) -> None:
        """Take part in the other ranks' passes without sequences; they are collective under sharding."""
        self._runtime.join_passes(self._critic, 0)


def passes(
    network: Network,
    pieces: Sequence[Tensor],
    lengths: Tensor,
    budget: TokenBudget,
    runtime: Runtime,
    work: Callable[[Tensor], None],
) -> Iterator[tuple[int, int]]:
    """Passes without gradient over pieces of a batch; smaller ones when memory runs out, except under sharding.

    Args:
        network: the network that `work` passes them through.
        pieces: rows of each pass, [N] int64 each.
        lengths: [B] int64 on the CPU, tokens of every row of the batch.
        budget: token budget that the pieces were cut for; halved when memory runs out.
        runtime: runtime of this rank.
        work: called with the rows of each pass.

    Yields:
        Passes done, and passes in total.
    """
    runtime.join_passes(network, len(pieces))
    left, done = list(pieces), 0
    while left:
        try:
            work(left[0])
        except RuntimeError as error:
            # Under sharding passes are collective: a rank that makes more of them would leave the others behind.
            if not is_out_of_memory(error) or is_sharded(network) or len(left[0]) == 1:
                raise
        else:
            left, done = left[1:], done + 1
            yield done, done + len(left)
            continue
        release_reserve()  # outside the except block, whose traceback keeps activations alive
        budget.halve()
        runtime.say(
            f"out of memory in a pass without gradient: continuing with model.memory.micro_batch_tokens {budget.tokens}"
        )
        left = budget.recut(left, lengths)


@torch.no_grad()
def read_logprobs(
    policy: Policy,
    sequences: Sequences,
    pieces: Sequence[Tensor],
    temperature: float,
    budget: TokenBudget,
    runtime: Runtime,
    into: Tensor,
) -> None:
    """Write a policy's log-probabilities of some rows into a tensor; the caller sets the precision.

    Args:
        policy: the policy.
        sequences: B sequences with T response tokens.
        pieces: rows of each forward pass, [N] int64 each.
        temperature: divides the logits.
        budget: token budget that the pieces were cut for.
        runtime: runtime of this rank.
        into: target, [B, T] float.
    """

    def read(rows: Tensor) -> None:
        logprobs = policy(*sequences.select(rows).tokens, temperature).logprobs
        into[rows, : logprobs.shape[1]] = logprobs.to(into.dtype)

    for _ in passes(policy, pieces, sequences.lengths(), budget, runtime, read):
        pass
