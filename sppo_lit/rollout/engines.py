"""Factory of rollout engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.rollout.torch_engine import TorchEngine, whole_copy
from sppo_lit.settings import RolloutSettings
from sppo_lit.types import RolloutEngine
from sppo_lit.utils.objects import load_object, names_object

EngineFactory = Callable[[RolloutSettings, PreTrainedModel, Sequence[int], int, torch.device, bool], RolloutEngine]
"""(settings, the policy's model, ids that end a response, pad id, device, whether the model is sharded) -> engine."""


def _torch_engine(
    settings: RolloutSettings,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    sharded: bool,
) -> RolloutEngine:
    own = whole_copy(model, device) if sharded else model
    return TorchEngine(own, eos_ids, pad_id, settings.max_concurrent, shares_weights=not sharded)


ENGINES: dict[str, EngineFactory] = {"torch": _torch_engine}


def make_engine(
    settings: RolloutSettings,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    sharded: bool,
) -> RolloutEngine:
    """The engine that `model.rollout.engine` names.

    Args:
        settings: settings of the rollouts.
        model: the policy's model; an engine may decode with it or with a copy.
        eos_ids: a response ends with any of these tokens.
        pad_id: id that pads short prompts.
        device: device of the engine.
        sharded: the model is sharded, so that a rank cannot decode with it alone.

    Raises:
        InputError: unknown engine, or one that does not support this model.
    """
    if settings.engine in ENGINES:
        factory = ENGINES[settings.engine]
    elif names_object(settings.engine):
        factory = load_object(settings.engine, "model.rollout.engine")
    else:
        raise InputError(
            f"model.rollout.engine {settings.engine!r} is unknown; choose one of: {', '.join(ENGINES)}, or name a "
            "custom one (path/to/file.py:factory)"
        )
    return factory(settings, model, eos_ids, pad_id, device, sharded)
