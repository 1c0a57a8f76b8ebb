"""Stopping a run on a signal: all ranks together, without losing finished work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from sppo_lit.distributed.collectives import ranks, reduced
from sppo_lit.distributed.waiting import Rendezvous
from sppo_lit.errors import Stopped
from sppo_lit.training.protocols import BoundaryKeeper, callbacks_of
from sppo_lit.training.timing import WAIT, PhaseTimer


class StopControl:
    """Requests to stop, synchronisation of ranks, and the points where a run may stop.

    Ranks synchronise after sampling and once per minibatch, which also shares requests to stop.

    Args:
        trainer: trainer of the run.
        timer: measures the time spent waiting for other ranks.
        iteration: returns the number of completed iterations.

    Attributes:
        signum: the signal that asked this rank to stop; 0 for none.
    """

    def __init__(self, trainer: pl.Trainer, timer: PhaseTimer, iteration: Callable[[], int]) -> None:
        self.signum = 0
        self._trainer, self._timer, self._iteration = trainer, timer, iteration
        self._device = trainer.strategy.root_device
        self._agreed = 0  # signal of any rank at the last synchronisation
        self._rendezvous = Rendezvous()

    def request(self, signum: int) -> None:
        """Stop at the next point where no finished work is lost; the first request counts."""
        self.signum = self.signum or signum

    @contextmanager
    def interruptible(self, boundary: bool) -> Iterator[None]:
        """Context for sampling that `break_off` may interrupt; afterwards all ranks synchronise, and stop together.

        Args:
            boundary: the weights are those of the last finished iteration.
        """
        with suppress(Stopped):  # raised by `break_off`
            yield
        # Ranks sample for very different times, possibly longer than a collective may take.
        if boundary:
            self.meet(patient=True)
        else:  # waiting for an evaluation is not part of an iteration
            self._meet(patient=True)
        self.check(boundary)

    def wait(self) -> None:
        """Wait for all ranks, however long they take, before a collective within an `interruptible` block."""
        self._rendezvous.wait()

    def break_off(self, boundary: bool) -> None:
        """Interrupt an `interruptible` block on this rank alone; to be called often.

        Raises:
            Stopped: this rank was asked to stop and may do so here.
        """
        if self.signum and self._may_leave(boundary):
            raise Stopped(self.signum)

    def check(self, boundary: bool) -> None:
        """Stop the run if requested; all ranks call this at the same point.

        Args:
            boundary: the weights are those of the last finished iteration; it is saved if it has not been.

        Raises:
            Stopped: a rank was asked to stop before the last synchronisation, and no finished work would be lost.
        """
        signum = self._agreed if ranks() > 1 else self.signum
        if not signum or not self._may_leave(boundary):
            return
        for keeper in self._keepers() if boundary and self._training() else []:
            keeper.save_boundary(self._trainer, self._trainer.lightning_module)
        raise Stopped(signum)

    def meet(self, flag: bool = False, patient: bool = False) -> bool:
        """Synchronise all ranks; the time waited is added to the iteration's `WAIT`.

        Args:
            flag: this rank's.
            patient: however long the others take; otherwise as long as a collective may take.

        Returns:
            Whether the flag of any rank is set.
        """
        if ranks() == 1:
            return flag
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        with self._timer(WAIT):
            return self._meet(flag, patient)

    def _meet(self, flag: bool = False, patient: bool = False) -> bool:
        if ranks() == 1:
            return flag
        if patient:
            self._rendezvous.wait()
        mine = torch.tensor([self.signum, int(flag)], device=self._device)
        signum, any_flag = reduced(mine, dist.ReduceOp.MAX).tolist()
        self._agreed = max(self._agreed, signum)
        return bool(any_flag)

    def _training(self) -> bool:
        return self._trainer.state.fn == "fit" and not self._trainer.sanity_checking

    def _keepers(self) -> list[BoundaryKeeper]:
        return [c for c in callbacks_of(self._trainer) if isinstance(c, BoundaryKeeper)]

    def _may_leave(self, boundary: bool) -> bool:
        """Whether at most the running iteration, its evaluation included, would be lost."""
        if boundary or not self._training():
            return True
        finished = self._iteration() - int(self._trainer.validating)
        return all(keeper.saved_iteration >= finished for keeper in self._keepers())
