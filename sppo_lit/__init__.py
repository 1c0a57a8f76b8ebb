"""Sequence-Level PPO (arXiv 2604.08865) as a PyTorch Lightning recipe project.

The public names are imported on first use, so that `import sppo_lit` costs nothing and the worker processes that
judge answers never load torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "SPPOModule": "sppo_lit.training.module",
    "SupervisedModule": "sppo_lit.training.supervised",
    "ControlModule": "sppo_lit.control.module",
    "MathDataModule": "sppo_lit.training.datamodule",
    "ProblemSet": "sppo_lit.training.datamodule",
    "PromptSettings": "sppo_lit.problems.prompts",
    "Example": "sppo_lit.problems.prompts",
    "Columns": "sppo_lit.problems.prompts",
    "ArithmeticTask": "sppo_lit.problems.arithmetic",
    "Sampling": "sppo_lit.types",
    "ModelSource": "sppo_lit.settings",
    "BatchSettings": "sppo_lit.settings",
    "PPOSettings": "sppo_lit.settings",
    "AdvantageSettings": "sppo_lit.settings",
    "KLSettings": "sppo_lit.settings",
    "RewardSettings": "sppo_lit.settings",
    "VerifierSettings": "sppo_lit.settings",
    "RolloutSettings": "sppo_lit.settings",
    "OptimizerSettings": "sppo_lit.settings",
    "EvalSettings": "sppo_lit.settings",
    "MemorySettings": "sppo_lit.settings",
    "LoraSettings": "sppo_lit.settings",
    "SelectSettings": "sppo_lit.settings",
    "Evaluation": "sppo_lit.callbacks.evaluation",
    "IterationCheckpoint": "sppo_lit.callbacks.checkpoint",
    "HuggingFaceExport": "sppo_lit.callbacks.export",
    "standard_trainer": "sppo_lit.callbacks.standard",
}
"""Name -> the module that defines it."""
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
