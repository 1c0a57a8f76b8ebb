"""Streams initial states: one epoch = one batch = one iteration, as `training.datamodule` does with problems."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from sppo_lit.control.module import ControlModule
from sppo_lit.errors import refuse
from sppo_lit.training.datamodule import GeneratedBatch, batches_of
from sppo_lit.types import Intact, Sequences

HELD_OUT, TRAINING, PER_SEED = 1_200_000_000, 2_000_000_000, 10_000_000
"""Seeds of initial states: first held-out one, first of training, and how many of training a run's seed has."""


class ControlDataModule(pl.LightningDataModule):
    """Seeds of initial states for training and evaluation; iteration i trains on states i·n … (i+1)·n − 1 of its seed.

    Args:
        problems_per_epoch: n, initial states of one iteration.
        held_out: initial states of an evaluation, the same for every run.
    """

    def __init__(self, problems_per_epoch: int = 64, held_out: int = 128) -> None:
        super().__init__()
        refuse(
            "data",
            problems_per_epoch=(problems_per_epoch, problems_per_epoch >= 1, "at least 1"),
            held_out=(held_out, held_out >= 1, "at least 1"),
        )
        self.problems_per_epoch, self.held_out = problems_per_epoch, held_out

    @property
    def module(self) -> ControlModule:
        """The trained module."""
        assert self.trainer is not None
        return cast(ControlModule, self.trainer.lightning_module)

    @property
    def val_names(self) -> list[str]:
        """The environment's name."""
        return [self.module.environment]

    def states(self, iteration: int) -> list[int]:
        """Seeds of the initial states of 0-based `iteration`."""
        first = TRAINING + self.module.seed * PER_SEED + iteration * self.problems_per_epoch
        return list(range(first, first + self.problems_per_epoch))

    def train_dataloader(self) -> DataLoader[Intact[Sequences]]:
        """One batch: the episodes of this iteration."""
        module = self.module
        return batches_of(
            GeneratedBatch(lambda: module.collector.collect(self.states(module.iteration), module.iteration))
        )

    def val_dataloader(self) -> DataLoader[Intact[list[int]]]:
        """One batch: the held-out initial states."""
        return batches_of([Intact(list(range(HELD_OUT, HELD_OUT + self.held_out)))])

    def transfer_batch_to_device(
        self, batch: Intact[object], device: torch.device, dataloader_idx: int
    ) -> Intact[object]:
        """No-op: everything is on the CPU."""
        return batch
