"""A callback for the tests: one rank's gradient goes bad."""

from __future__ import annotations

import lightning.pytorch as pl
import torch


class Poison(pl.Callback):
    """In the last iteration, makes the policy's gradient NaN on the last rank only."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def poison(gradient: torch.Tensor) -> torch.Tensor:
            last = pl_module.iteration + 1 == trainer.max_epochs
            return gradient * float("nan") if last else gradient

        if trainer.global_rank == trainer.world_size - 1:
            next(pl_module.policy.parameters()).register_hook(poison)
