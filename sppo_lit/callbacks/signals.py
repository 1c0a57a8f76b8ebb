"""SIGINT and SIGTERM: the first one stops the run without losing finished work, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from sppo_lit.distributed.processes import launched, launched_ranks
from sppo_lit.training.protocols import training_module
from sppo_lit.utils.console import console

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"


class StopSignals(Callback):
    """Passes signals to the module's `stop`, which stops the run at the next point where all ranks can.

    Replaces Lightning's SIGTERM handler, whose broadcast from within the handler can collide with other collectives.
    Lightning's handler of SLURM's requeue signal stays; Lightning restores all handlers when the trainer is done.
    """

    def __init__(self) -> None:
        self._installed = self._noticed = False
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        self._installed = self._noticed = False

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers, just after Lightning has installed its own."""
        self._install(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same without an evaluation before training."""
        self._install(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same for `validate`."""
        self._install(trainer)

    def on_phase(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *facts: object) -> None:
        """Print once that the signal was received."""
        signum = training_module(pl_module).stop.signum
        if signum and not self._noticed and trainer.is_global_zero:
            self._noticed = True
            name = signal.Signals(signum).name
            console.print(f"{name}: stopping as soon as no finished work is lost; a second one stops at once")

    def _install(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        if not self._installed and threading.current_thread() is threading.main_thread():
            self._installed = True
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        training_module(self._trainer.lightning_module).stop.request(signum)
        if launched():  # the parent decides; it may forward a signal that the terminal has sent to all
            return
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        for process in launched_ranks(self._trainer):
            process.send_signal(signum)
        if console.is_terminal:
            os.write(1, SHOW_CURSOR)  # a second signal ends the process at once
