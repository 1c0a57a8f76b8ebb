"""Callbacks for the tests that make trouble at a given place of a run."""

from __future__ import annotations

import os
import resource
import signal
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch


class SignalAt(pl.Callback):
    """Sends a signal to its own process, on one rank: after so many iterations, in a phase, after parts of it."""

    def __init__(self, signum: int, phase: str, iteration: int, rank: int = 0, part: int = 0, times: int = 1) -> None:
        self.times = times
        self.signum, self.phase, self.iteration, self.rank, self.part = signum, phase, iteration, rank, part
        self.done = False

    def on_phase(self, trainer: pl.Trainer, pl_module: Any, phase: str, done: int, *facts: Any) -> None:
        here = (phase, pl_module.iteration, trainer.global_rank) == (self.phase, self.iteration, self.rank)
        if here and done >= self.part and not trainer.sanity_checking and not self.done:
            self.done = True
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


class KillAt(SignalAt):
    """The same with SIGKILL."""

    def __init__(self, phase: str, iteration: int, rank: int) -> None:
        super().__init__(signal.SIGKILL, phase, iteration, rank)


class SlowSampling(pl.Callback):
    """One rank samples so many seconds longer than a collective may take, in every iteration and evaluation."""

    def __init__(self, seconds: float, timeout: float, rank: int) -> None:
        self.seconds, self.timeout, self.rank, self.slept = seconds, timeout, rank, set[tuple[str, int]]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout))

    def on_phase(self, trainer: pl.Trainer, pl_module: Any, phase: str, *facts: Any) -> None:
        here = (phase, pl_module.iteration)
        if phase in ("sampling", "evaluating") and trainer.global_rank == self.rank and here not in self.slept:
            self.slept.add(here)
            time.sleep(self.seconds)


class SmallMemory(pl.Callback):
    """Runs out of memory in a pass with gradient over more than so many sequences, in every pass but the first.

    The policy only, on one rank only.
    """

    def __init__(self, sequences: int, rank: int = 0) -> None:
        self.sequences, self.rank, self.passes = sequences, rank, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        forward = pl_module.policy.forward

        def small(prompt_ids: torch.Tensor, *rest: Any) -> Any:
            self.passes += torch.is_grad_enabled()
            if torch.is_grad_enabled() and len(prompt_ids) > self.sequences and self.passes > 1:
                raise torch.OutOfMemoryError("planned")
            return forward(prompt_ids, *rest)

        if trainer.global_rank == self.rank:
            pl_module.policy.forward = small


class SmallFiles(pl.Callback):
    """From an iteration on no file may grow beyond so many bytes, as on a disk that is full."""

    def __init__(self, size: int, iteration: int) -> None:
        self.size, self.iteration = size, iteration

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.iteration == self.iteration:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def callback(kind: type, **arguments: Any) -> dict[str, Any]:
    """Its entry in a recipe's `trainer.callbacks`."""
    return {"class_path": f"troubles.{kind.__name__}", "init_args": arguments}
