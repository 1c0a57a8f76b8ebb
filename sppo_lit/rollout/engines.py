"""Factory of rollout engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.rollout.torch_engine import TorchEngine, decode_copy, decodes_from_copy
from sppo_lit.rollout.vllm_engine import VLLMEngine, check_installed
from sppo_lit.settings import RolloutSettings
from sppo_lit.types import RolloutEngine
from sppo_lit.utils.objects import load_function, names_object

CUSTOM = ("deterministic", "shares_weights", "exact")
"""Attributes that a custom engine must have."""

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
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    copies = decodes_from_copy(model.dtype, dtype is not None, sharded)
    own = decode_copy(model, device, dtype, sharded) if copies else model
    return TorchEngine(own, eos_ids, pad_id, settings.max_concurrent, shares_weights=not copies)


def _vllm_engine(
    settings: RolloutSettings,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    sharded: bool,
) -> RolloutEngine:
    return VLLMEngine(model, eos_ids, settings.max_concurrent, settings.vllm, device)


def _nothing() -> None:
    """No requirements."""


@dataclass(frozen=True)
class EngineKind:
    """A built-in engine.

    Attributes:
        make: creates it.
        exact: see `RolloutEngine`.
        check: raises `InputError` if what it needs is not installed; called before anything is loaded.
    """

    make: EngineFactory
    exact: bool
    check: Callable[[], None] = _nothing


ENGINES: dict[str, EngineKind] = {
    "torch": EngineKind(_torch_engine, exact=TorchEngine.exact),
    "vllm": EngineKind(_vllm_engine, exact=VLLMEngine.exact, check=check_installed),
}


TAKES = ("settings", "model", "eos_ids", "pad_id", "device", "sharded")
"""What a custom factory is called with."""


def built_in(settings: RolloutSettings) -> EngineKind | None:
    """The built-in engine that `model.rollout.engine` names, or None for a custom one.

    Raises:
        InputError: unknown engine, or what it needs is not installed.
    """
    if settings.engine in ENGINES:
        ENGINES[settings.engine].check()
        return ENGINES[settings.engine]
    if names_object(settings.engine):
        return None
    raise InputError(
        f"model.rollout.engine {settings.engine!r} is unknown; choose one of: {', '.join(ENGINES)}, or name a "
        "custom one (path/to/file.py:factory)"
    )


def make_engine(
    settings: RolloutSettings,
    model: PreTrainedModel,
    eos_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
    sharded: bool,
) -> RolloutEngine:
    """The engine that `model.rollout.engine` names.

    Called in the precision's autocast context.

    Args:
        settings: settings of the rollouts.
        model: the policy's model; an engine may decode with it or with a copy.
        eos_ids: a response ends with any of these tokens.
        pad_id: id that pads short prompts.
        device: device of the engine.
        sharded: the model is sharded, so that a rank cannot decode with it alone.

    Raises:
        InputError: unknown engine, one that does not support this model, or a custom one that lacks an attribute.
    """
    if (kind := built_in(settings)) is not None:
        return kind.make(settings, model, eos_ids, pad_id, device, sharded)
    make = load_function(settings.engine, "model.rollout.engine", TAKES)
    engine = make(settings, model, eos_ids, pad_id, device, sharded)
    if lacking := [name for name in CUSTOM if not hasattr(engine, name)]:
        raise InputError(
            f"model.rollout.engine {settings.engine}: {type(engine).__name__} has no attribute {lacking[0]}, which "
            "RolloutEngine in sppo_lit/types.py describes; add it"
        )
    return engine
