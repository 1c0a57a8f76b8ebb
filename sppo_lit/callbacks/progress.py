"""Live display of a run: progress, current phase, metrics and remaining time."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import RenderableType
from rich.live import Live

from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.callbacks.picture import View, picture, plain
from sppo_lit.errors import refuse
from sppo_lit.training.protocols import callbacks_of, training_module
from sppo_lit.utils import console as shared


@dataclass
class Pace:
    """Estimates the remaining time from the medians of the last iterations and evaluations, timed separately.

    Attributes:
        iterations: seconds of the last iterations, without evaluation.
        evaluations: seconds of the last evaluations.
    """

    iterations: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    evaluations: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    def remaining(self, iterations: int, evaluations: int, elapsed: float, evaluating: float = 0.0) -> float | None:
        """Seconds left, or None before anything was timed.

        Args:
            iterations: iterations to come, the current one included.
            evaluations: evaluations to come.
            elapsed: seconds spent on the current iteration.
            evaluating: seconds spent on the current evaluation.
        """
        if not self.iterations:
            return None
        each = median(self.iterations)
        left = max(0.0, each - elapsed) + each * (iterations - 1) if iterations else 0.0
        if self.evaluations and evaluations:
            evaluation = median(self.evaluations)
            left += max(0.0, evaluation - evaluating) + evaluation * (evaluations - 1)
        return left


class RunProgress(ProgressBar):
    """Progress of a run: a live display on a terminal, one plain line per iteration anywhere else.

    Args:
        plain_every_n_iterations: how often a line is printed without a terminal.
        refresh_per_second: refresh rate of the live display.

    Raises:
        InputError: a number that cannot be meant.
    """

    def __init__(self, plain_every_n_iterations: int = 1, refresh_per_second: float = 4.0) -> None:
        super().__init__()
        refuse(
            "progress",
            plain_every_n_iterations=(plain_every_n_iterations, plain_every_n_iterations >= 1, "at least 1"),
            refresh_per_second=(refresh_per_second, 0 < refresh_per_second <= 60, "above 0 and at most 60"),
        )
        self.plain_every_n_iterations = plain_every_n_iterations
        self.refresh_per_second = refresh_per_second
        self._enabled = True
        self._live: Live | None = None
        self._pace = Pace()
        self._view = View()
        self._started = self._iteration_started = self._evaluation_started = time.monotonic()
        self._evaluating = False
        self._evaluated = 0.0  # seconds of this iteration spent on evaluation
        self._evaluations_left = 0
        self._clock: Clock | None = None  # of a run with a budget

    # --- Lightning's interface of a progress bar
    def disable(self) -> None:
        """Show nothing (ranks other than zero)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the display again."""
        self._enabled = True

    def print(self, *args: object, **kwargs: object) -> None:
        """Print above the display."""
        if self._enabled:
            shared.console.print(*args)

    # --- the run
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the display for the evaluation before training."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing iterations."""
        self._begin(trainer, pl_module)
        self._iteration_started, self._evaluated = time.monotonic(), 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the iteration; its evaluation may follow."""
        self._count(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update metrics and remaining time, and print a plain line if due."""
        now = time.monotonic()
        seconds = now - self._iteration_started
        self._pace.iterations.append(max(0.0, seconds - self._evaluated))
        self._iteration_started, self._evaluated = now, 0.0
        self._count(trainer, pl_module)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._view.metrics = metrics
        self._view.accuracies = [*self._view.accuracies, metrics.get("rollout/accuracy", math.nan)]
        self._view.phase = ""
        self._time()
        last = self._view.iteration == self._view.iterations or self._view.share == 1.0
        if self._enabled and not self._live and (last or self._view.iteration % self.plain_every_n_iterations == 0):
            shared.console.print(plain(self._view, seconds), markup=False, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the display, leaving its last state on the screen."""
        self._stop()

    # --- evaluation
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing the evaluation, separately since it may not run in every iteration."""
        self._begin(trainer, pl_module)
        self._evaluating, self._evaluation_started = True, time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the evaluation's time and accuracy."""
        seconds = time.monotonic() - self._evaluation_started
        self._evaluating = False
        self._pace.evaluations.append(seconds)
        self._evaluated += seconds
        self._evaluations_left = max(0, self._evaluations_left - (not trainer.sanity_checking))
        self._view.phase = ""
        callbacks = callbacks_of(trainer)
        self._view.held_out = [a for c in callbacks if isinstance(c, Evaluation) for _, a in c.history]
        if trainer.state.fn != "fit":
            self._stop()

    def on_phase(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        phase: str,
        done: int,
        total: int,
        facts: dict[str, float],
    ) -> None:
        """Show the progress of the current phase.

        Args:
            trainer: the trainer.
            pl_module: the module.
            phase: one of `picture.PHASES`.
            done: finished parts of the phase.
            total: total number of parts.
            facts: ``tokens_per_second`` while sampling.
        """
        self._view.phase, self._view.done, self._view.total, self._view.facts = phase, done, total, facts

    # --- end
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the display before the error is printed."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop the display."""
        self._stop()

    # --- internals
    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count(trainer, pl_module)
        if self._enabled and self._live is None and shared.is_interactive(shared.console):
            self._started = time.monotonic()
            self._live = Live(
                get_renderable=self._picture,
                console=shared.console,
                refresh_per_second=self.refresh_per_second,
                vertical_overflow="visible",
            )
            self._live.start()

    def _stop(self) -> None:
        if self._live is not None:
            self._view.phase = ""
            live, self._live = self._live, None
            live.stop()

    def _count(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        view, most = self._view, trainer.max_epochs
        view.iteration = training_module(pl_module).iteration
        view.iterations = most if trainer.state.fn == "fit" and most and most > 0 else None
        every = trainer.check_val_every_n_epoch or 1
        running = trainer.validating and view.iteration % every == 0
        self._evaluations_left = max(0, (view.iterations or 0) // every - view.iteration // every) + running
        callbacks = callbacks_of(trainer)
        self._clock = next((c for c in callbacks if isinstance(c, Clock) and c.share is not None), None)
        if self._clock and trainer.state.fn == "fit":
            view.share, view.iterations = self._clock.share, None
            self._evaluations_left = self._clock.evaluations_left + running

    def _time(self) -> None:
        now, view = time.monotonic(), self._view
        view.elapsed = now - self._started
        # During its evaluation, an iteration already counts as completed.
        spent = 0.0 if self._evaluating else now - self._iteration_started - self._evaluated
        evaluating = now - self._evaluation_started if self._evaluating else 0.0
        if self._clock is not None:
            training = self._clock.remaining()
            evaluation = self._pace.remaining(0, self._evaluations_left, 0.0, evaluating)
            view.remaining = None if training is None else max(0.0, training - spent) + (evaluation or 0.0)
        elif view.iterations is not None:
            left = max(0, view.iterations - view.iteration)
            view.remaining = self._pace.remaining(left, self._evaluations_left, spent, evaluating)

    def _picture(self) -> RenderableType:
        self._time()
        return picture(self._view)
