"""The folder that a run writes to."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl


def run_folder(trainer: pl.Trainer) -> Path:
    """Folder of the run's logs, checkpoints and exports.

    Call it on every rank and before training has ended: `Trainer.log_dir` is broadcast from rank zero.
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is Lightning's `fast_dev_run`, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
