"""Where a run may be left when a signal asks for it: all ranks together, and nothing finished is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from sppo_lit.distributed.collectives import ranks, reduced
from sppo_lit.errors import Stopped
from sppo_lit.training.protocols import BoundaryKeeper, callbacks_of
from sppo_lit.training.timing import WAIT, PhaseTimer


class StopControl:
    """Signals, the agreement of ranks, and the places where a run may be left.

    Ranks meet after sampling and once in every minibatch; whoever was asked to stop tells the others there.

    Args:
        trainer: of the run.
        timer: waiting for other ranks is noted there.
        iteration: tells how many iterations are completed.

    Attributes:
        signum: the signal that asked this rank to stop; 0 for none.
    """

    def __init__(self, trainer: pl.Trainer, timer: PhaseTimer, iteration: Callable[[], int]) -> None:
        self.signum = 0
        self._trainer, self._timer, self._iteration = trainer, timer, iteration
        self._device = trainer.strategy.root_device
        self._agreed = 0  # the signal of any rank, when they last met

    def request(self, signum: int) -> None:
        """Leave at the next place where nothing finished is lost; the first request counts."""
        self.signum = self.signum or signum

    @contextmanager
    def interruptible(self, boundary: bool) -> Iterator[None]:
        """Sampling in here is broken off by `break_off`; then all ranks meet, and leave together.

        Args:
            boundary: the weights are those of the last finished iteration.
        """
        with suppress(Stopped):  # raised by `break_off`
            yield
        if boundary:
            self.meet()
        else:  # waiting for an evaluation is not part of an iteration
            self._meet()
        self.check(boundary)

    def break_off(self, boundary: bool) -> None:
        """To be called often in an `interruptible` block, on this rank alone.

        Raises:
            Stopped: this rank was asked to stop and may.
        """
        if self.signum and self._may_leave(boundary):
            raise Stopped(self.signum)

    def check(self, boundary: bool) -> None:
        """End the run where all ranks are at the same place.

        Args:
            boundary: the weights are those of the last finished iteration; a checkpoint of it is saved if need be.

        Raises:
            Stopped: a rank was asked to stop when the ranks last met, and no finished iteration would be lost.
        """
        signum = self._agreed if ranks() > 1 else self.signum
        if not signum or not self._may_leave(boundary):
            return
        for keeper in self._keepers() if boundary and self._training() else []:
            keeper.save_boundary(self._trainer, self._trainer.lightning_module)
        raise Stopped(signum)

    def meet(self, flag: bool = False) -> bool:
        """Where ranks have to meet; how long this one waited is added to the iteration's `WAIT`.

        Returns:
            whether the flag of any rank is set.
        """
        if ranks() == 1:
            return flag
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        with self._timer(WAIT):
            return self._meet(flag)

    def _meet(self, flag: bool = False) -> bool:
        if ranks() == 1:
            return flag
        mine = torch.tensor([self.signum, int(flag)], device=self._device)
        signum, any_flag = reduced(mine, dist.ReduceOp.MAX).tolist()
        self._agreed = max(self._agreed, signum)
        return bool(any_flag)

    def _training(self) -> bool:
        return self._trainer.state.fn == "fit" and not self._trainer.sanity_checking

    def _keepers(self) -> list[BoundaryKeeper]:
        return [c for c in callbacks_of(self._trainer) if isinstance(c, BoundaryKeeper)]

    def _may_leave(self, boundary: bool) -> bool:
        """Whether nothing but the running iteration would be lost: its evaluation is a part of it."""
        if boundary or not self._training():
            return True
        finished = self._iteration() - int(self._trainer.validating)
        return all(keeper.saved_iteration >= finished for keeper in self._keepers())
