"""What a run does when something goes wrong: a signal, memory that runs out, a gradient or a value that is not finite.

Ranks decide together, where they meet anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches
from sppo_lit.distributed.collectives import is_sharded, ranks, reduced
from sppo_lit.errors import InputError, Stopped
from sppo_lit.training.run_folder import run_folder
from sppo_lit.utils.console import console

T = TypeVar("T")


class FaultTolerantModule(pl.LightningModule):
    """Leaves together when told to, retries a minibatch in smaller pieces, gives up after too many bad gradients.

    Attributes:
        told: the signal that asked this rank to stop; 0 for none.
        max_skipped_steps: optimizer steps of one network that may be skipped in a row.
        micro_batch_tokens: most tokens, padding included, of one forward pass with gradient; halved for good when
            memory runs out.
        out_of_memory: how often that happened in this iteration.
    """

    max_skipped_steps = 5
    micro_batch_tokens: int
    seconds: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.told = 0
        self.out_of_memory = 0
        self._agreed = 0
        self._skipped: Counter[str] = Counter()

    @property
    def iteration(self) -> int:
        """Iterations completed."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Print one line on rank zero."""
        if self.trainer.is_global_zero:
            console.print(line, markup=False, soft_wrap=True)

    # ------------------------------------------------------------------------------------------------------- stopping

    @contextmanager
    def interruptible(self, boundary: bool) -> Iterator[None]:
        """Sampling in here is broken off when this rank is told to stop; then all ranks meet, and leave together.

        Args:
            boundary: the weights are those of the last finished iteration.
        """
        with suppress(Stopped):  # raised by `break_off`
            yield
        if boundary:
            self.wait_for_others()
        else:  # an evaluation's waiting is none of the iteration's
            self._meet()
        self.leave_if_told(boundary)

    def break_off(self, boundary: bool) -> None:
        """To be called often in an `interruptible` block, on this rank alone.

        Raises:
            Stopped: this rank has been told to stop and may.
        """
        if self.told and self._may_leave(boundary):
            raise Stopped(self.told)

    def leave_if_told(self, boundary: bool) -> None:
        """End the run where all ranks are at the same place.

        Args:
            boundary: the weights are those of the last finished iteration; a checkpoint of it is saved if need be.

        Raises:
            Stopped: a rank was told to stop when the ranks last met, and no finished iteration would be lost.
        """
        signum = self._agreed if ranks() > 1 else self.told
        if not signum or not self._may_leave(boundary):
            return
        for callback in self.trainer.callbacks if self._training() else []:  # type: ignore[attr-defined]
            if boundary and hasattr(callback, "save_boundary"):
                callback.save_boundary(self.trainer, self)
        raise Stopped(signum)

    def _training(self) -> bool:
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _may_leave(self, boundary: bool) -> bool:
        """Whether nothing but the running iteration would be lost: its evaluation is a part of it."""
        if boundary or not self._training():
            return True
        finished = self.iteration - int(self.trainer.validating)
        keepers = [c for c in self.trainer.callbacks if hasattr(c, "saved_iteration")]  # type: ignore[attr-defined]
        return all(c.saved_iteration >= finished for c in keepers)

    def wait_for_others(self, flag: bool = False) -> bool:
        """Where ranks have to meet; how long this one waited is added to the iteration's `wait`.

        Returns:
            whether the flag of any rank is set.
        """
        if ranks() == 1:
            return flag
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        with self.timed("wait"):
            return self._meet(flag)

    def _meet(self, flag: bool = False) -> bool:
        if ranks() == 1:
            return flag
        signum, any_flag = reduced(torch.tensor([self.told, int(flag)], device=self.device), dist.ReduceOp.MAX).tolist()
        self._agreed = max(self._agreed, signum)
        return bool(any_flag)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Add the wall-clock seconds of the block to this iteration's `phase`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- updating

    def join_passes(self, network: Any, passes: int) -> None:
        """Begin a minibatch's passes together with the other ranks."""
        raise NotImplementedError

    def accumulate(
        self,
        network: Any,
        pieces: list[Tensor],
        lengths: Callable[[], Tensor],
        passes: Callable[[list[Tensor]], T],
    ) -> T:
        """Accumulate a network's gradient over the micro-batches of a minibatch, together with all ranks.

        When memory runs out on any rank, all begin again from a zero gradient, in micro-batches of half the size. Not
        under sharding: there passes are joint, and a rank that breaks one off cannot tell the others.

        Args:
            network: whose gradient, which is zero to begin with.
            pieces: this rank's rows of each micro-batch, [N] int64 each.
            lengths: gives the tokens of each row of the batch, [B] int64 on the CPU; asked for once memory has run out.
            passes: forward and backward over such pieces, without collectives.

        Returns:
            what `passes` returned.

        Raises:
            torch.OutOfMemoryError: a single sequence is too much, or the network is sharded.
        """
        if self.out_of_memory:  # in an earlier minibatch of the iteration, which was cut beforehand
            pieces = self._cut(pieces, lengths)
        while True:
            self.join_passes(network, len(pieces))
            found: list[T] = []
            try:
                found.append(passes(pieces))
            except torch.OutOfMemoryError:
                if is_sharded(network) or max(map(len, pieces)) == 1:
                    raise
            # Outside the except block, whose traceback keeps activations alive.
            if not self.wait_for_others(not found):
                return found[0]
            network.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.out_of_memory += 1
            self.micro_batch_tokens = max(1, self.micro_batch_tokens // 2)
            self.say(f"out of memory in an update: going on with model.micro_batch_tokens {self.micro_batch_tokens}")
            pieces = self._cut(pieces, lengths)

    def _cut(self, pieces: list[Tensor], lengths: Callable[[], Tensor]) -> list[Tensor]:
        if not pieces:
            return []
        rows = torch.cat(pieces)
        return [rows[piece] for piece in micro_batches(lengths()[rows], self.micro_batch_tokens)]

    def optimizer_step_clipped(self, optimizer: Any, settings: Any) -> Tensor:
        """Sum the gradients over ranks, clip, step, zero; returns the norm, not finite where the step was skipped."""
        raise NotImplementedError

    def step_or_skip(
        self, name: str, optimizer: Any, settings: Any, loss: Tensor, contents: Callable[[], dict[str, Any]]
    ) -> Tensor:
        """One optimizer step, skipped where loss or gradient is not finite: the weights stay as they are.

        Args:
            name: of the network, "policy" or "critic".
            optimizer: its optimizer.
            settings: of the optimizer.
            loss: of the minibatch, a scalar, the same on every rank.
            contents: what to save of the minibatch if the run has to end here.

        Returns:
            the gradient's norm before clipping, a float32 scalar (not finite where the step was skipped).

        Raises:
            InputError: `max_skipped_steps` in a row were skipped; the minibatch is saved in the run folder.
        """
        if torch.isfinite(loss):
            norm = self.optimizer_step_clipped(optimizer, settings)
        else:
            optimizer.zero_grad()
            norm = torch.full_like(loss, torch.nan)
        self._skipped[name] = 0 if torch.isfinite(norm) else self._skipped[name] + 1
        if self._skipped[name] >= self.max_skipped_steps:
            file = run_folder(self.trainer) / f"bad_minibatch-{name}-rank{self.global_rank}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"iteration": self.iteration, "loss": float(loss), **contents()}, file)
            raise InputError(
                f"{self._skipped[name]} steps of the {name} in a row had a loss or gradient that is not finite, and "
                f"were skipped; the last minibatch is in {file}; lower model.{name}_optimizer.lr, or look for values "
                "out of range in it (model.max_skipped_steps sets how many are borne)"
            )
        return norm
