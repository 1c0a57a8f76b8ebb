"""The precision of a run on a CPU whose recipe leaves it open."""

from __future__ import annotations

import torch
from jsonargparse import Namespace

from sppo_lit.errors import InputError
from sppo_lit.models.loading import skeleton
from sppo_lit.settings import ModelSource
from sppo_lit.utils.cores import multiplies_bfloat16

LARGE = 20_000_000
"""Parameters of a policy from which on matrix products, and not the calls of operators, take the time."""


def faster_precision(trainer: Namespace, policy: Namespace) -> str | None:
    """For a large policy on a CPU that multiplies bfloat16 faster, "bf16-mixed"; None leaves it as it is.

    Args:
        trainer: settings of the Trainer.
        policy: settings of its source; one that cannot be read is reported where it is loaded.
    """
    elsewhere = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not elsewhere)
    if trainer.precision is not None or not on_cpu or not multiplies_bfloat16():
        return None
    try:
        model = skeleton(ModelSource(**policy.as_dict()), torch.float32, "none")
    except InputError:
        return None
    return "bf16-mixed" if sum(p.numel() for p in model.parameters()) >= LARGE else None
