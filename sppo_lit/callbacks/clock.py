"""Cost of training so far, an optional budget, and evaluations spread over that budget."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from sppo_lit.distributed.collectives import reduced
from sppo_lit.errors import InputError

NEVER = 10**9
"""As `trainer.check_val_every_n_epoch`: no evaluation in this iteration."""


class Clock(Callback):
    """Counts wall-clock seconds, sampled tokens and sequences of training, and stops when a budget is used up.

    Logs the sums over all iterations so far, including those before a resume: ``clock/seconds`` (sampling to update on
    the slowest rank, without start-up, evaluation and checkpoints), ``clock/tokens`` and ``clock/sequences`` (of all
    responses sampled for training, on all ranks).

    Args:
        max_seconds: training ends after the iteration in which ``clock/seconds`` reaches this.
        max_tokens: the same for ``clock/tokens``.
        max_sequences: the same for ``clock/sequences``.
        evaluations: number of evaluations, equally spaced over the budget, instead of one every
            `trainer.check_val_every_n_epoch` iterations; 0 for the latter. A run with a budget always ends with one.

    Attributes:
        budget: unit -> its limit.

    Raises:
        InputError: a budget that is not positive, or evaluations without a budget.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        max_tokens: int | None = None,
        max_sequences: int | None = None,
        evaluations: int = 0,
    ) -> None:
        self.budget = {"seconds": max_seconds, "tokens": max_tokens, "sequences": max_sequences}
        for unit, value in self.budget.items():
            name = f"max_{unit}"
            if value is not None and not value > 0:
                raise InputError(f"clock.{name} is {value}; it must be above 0, or null for no such budget")
        if evaluations < 0:
            raise InputError(f"clock.evaluations is {evaluations}; it must be at least 0")
        if evaluations and not any(self.budget.values()):
            raise InputError(f"clock.evaluations needs a budget; set clock.max_{' or clock.max_'.join(self.budget)}")
        self.evaluations = evaluations
        self.seconds = 0.0
        self.tokens = self.sequences = 0
        self._begun = time.perf_counter()
        self._evaluated = 0  # number of `evaluations` so far

    @property
    def share(self) -> float | None:
        """Used share of the budget, at most 1; None without a budget."""
        used = {"seconds": self.seconds, "tokens": self.tokens, "sequences": self.sequences}
        shares = [used[unit] / most for unit, most in self.budget.items() if most is not None]
        return min(1.0, max(shares)) if shares else None

    def remaining(self) -> float | None:
        """Estimated seconds of training left in the budget; None without a budget or before the first iteration."""
        return self.seconds * (1 - self.share) / self.share if self.share else None

    @property
    def evaluations_left(self) -> int:
        """Remaining `evaluations`; if not set, only the final one is known."""
        return self.evaluations - self._evaluated if self.evaluations else int(self.share != 1.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the schedule of evaluations; stop a resumed run whose budget is used up."""
        self._begun = time.perf_counter()  # a resumed run has no first `on_train_epoch_start`
        if self.evaluations:
            trainer.check_val_every_n_epoch = NEVER
        trainer.should_stop = trainer.should_stop or self.share == 1.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing an iteration."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the iteration, and decide whether to evaluate and whether to stop."""
        spent = torch.tensor(time.perf_counter() - self._begun, device=pl_module.device)
        self.seconds += float(reduced(spent, dist.ReduceOp.MAX))  # so that all ranks stop together
        logged = trainer.callback_metrics  # supervised training samples nothing
        self.tokens += round(float(logged.get("rollout/sampled_tokens", 0)))
        self.sequences += round(float(logged.get("rollout/sampled_sequences", 0)))
        for name, value in (("seconds", self.seconds), ("tokens", self.tokens), ("sequences", self.sequences)):
            pl_module.log(f"clock/{name}", float(value), on_step=True, on_epoch=False, batch_size=1)
        if self.share is None:
            return
        last = self.share == 1.0 or trainer.current_epoch + 1 == trainer.max_epochs
        due = int(self.share * self.evaluations)
        if last or due > self._evaluated:
            trainer.check_val_every_n_epoch = 1
        elif self.evaluations:
            trainer.check_val_every_n_epoch = NEVER
        self._evaluated = due
        trainer.should_stop = trainer.should_stop or self.share == 1.0

    def state_dict(self) -> dict[str, Any]:
        """The sums and the number of evaluations so far."""
        return {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "_evaluated": self._evaluated,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums."""
        self.seconds, self._evaluated = state_dict["seconds"], state_dict["_evaluated"]
        self.tokens, self.sequences = state_dict["tokens"], state_dict["sequences"]
