"""Callbacks of a run: clock and budget, evaluation, progress, completions, checkpoints, export, curves, summary."""

from sppo_lit.callbacks.checkpoint import IterationCheckpoint
from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.completions import CompletionsTable
from sppo_lit.callbacks.curves import Curves
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.callbacks.export import HuggingFaceExport
from sppo_lit.callbacks.progress import RunProgress
from sppo_lit.callbacks.summary import RunSummary

__all__ = [
    "Clock",
    "CompletionsTable",
    "Curves",
    "Evaluation",
    "HuggingFaceExport",
    "IterationCheckpoint",
    "RunProgress",
    "RunSummary",
]
