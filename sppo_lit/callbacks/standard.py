"""The Trainer of the command line, for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from sppo_lit.callbacks.checkpoint import IterationCheckpoint
from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.completions import CompletionsTable
from sppo_lit.callbacks.curves import Curves
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.callbacks.export import HuggingFaceExport
from sppo_lit.callbacks.progress import RunProgress
from sppo_lit.callbacks.summary import RunSummary

STANDARD = (
    Clock,
    RunProgress,
    CompletionsTable,
    Evaluation,
    IterationCheckpoint,
    HuggingFaceExport,
    Curves,
    RunSummary,
)
"""In the order in which they run. Signals are left to Lightning."""

DEFAULTS = {
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
"""Options of the Trainer."""


def standard_trainer(
    folder: str | Path = "lightning_logs",
    name: str = "python",
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> pl.Trainer:
    """A Trainer with the progress, evaluations, checkpoints, exports, curves and summary of a run by recipe.

    Args:
        folder: of all runs; this one is written to ``<folder>/<name>/version_<n>``.
        name: of the run.
        callbacks: more of them. One of a standard kind, e.g. ``Clock(max_seconds=300)``, replaces the standard one.
        **options: of `lightning.Trainer`.
    """
    own = [callback for callback in callbacks if isinstance(callback, STANDARD)]
    standard = [next((c for c in own if isinstance(c, kind)), None) or kind() for kind in STANDARD]
    csv = CSVLogger(folder, name)
    given = {
        "logger": [csv, TensorBoardLogger(folder, name, version=csv.version, default_hp_metric=False)],
        **DEFAULTS,
        **options,
    }
    return pl.Trainer(callbacks=[*standard, *(c for c in callbacks if c not in own)], **given)
