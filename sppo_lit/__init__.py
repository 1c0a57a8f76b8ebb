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
    "MathDataModule": "sppo_lit.training.datamodule",
}
__all__ = ["MathDataModule", "SPPOModule", "SupervisedModule", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
