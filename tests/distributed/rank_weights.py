"""A callback for the tests: what each rank holds at the end of training."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch

from sppo_lit.distributed.sharding import whole


class RankWeights(pl.Callback):
    """Writes every rank's whole weights to `<folder>/rank<r>.pt`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: whole(p.detach()).cpu() for name, p in pl_module.named_parameters()}
        torch.save(weights, self.folder / f"rank{trainer.global_rank}.pt")
