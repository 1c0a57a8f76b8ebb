"""A module's settings in its checkpoints, so that `load_from_checkpoint` needs nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import lightning.pytorch as pl
import torch

from sppo_lit.errors import InputError


def save_settings(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Write a module's settings (`save_hyperparameters`) as plain values, which are read without code of a pickle."""
    checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = plain(module.hparams)


def saved_settings(kind: type[pl.LightningModule], checkpoint: str | Path) -> dict[str, Any]:
    """The settings in a checkpoint, as arguments of the module's class.

    Raises:
        InputError: a sharded checkpoint.
    """
    if Path(checkpoint).is_dir():
        raise InputError(f"{checkpoint}: a sharded checkpoint; make one file of it with: sppo convert")
    content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    saved, hints = content.get(kind.CHECKPOINT_HYPER_PARAMS_KEY, {}), get_type_hints(kind.__init__)
    return {key: rebuilt(value, hints.get(key)) for key, value in saved.items()}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dataclasses as dictionaries; what is not made of plain values is left out."""
    values = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in settings.items()}  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))  # type: ignore[arg-type,call-overload]
    return value is None or type(value) in (bool, int, float, str)


def rebuilt(value: Any, hint: Any) -> Any:
    """A setting from its plain value.

    Args:
        value: as in `plain`.
        hint: its type: a dataclass, perhaps optional, or any other.
    """
    kind = next((k for k in (hint, *get_args(hint)) if dataclasses.is_dataclass(k)), None)
    if kind is None or not isinstance(value, dict):
        return value
    hints = get_type_hints(kind)
    return kind(**{key: rebuilt(inner, hints.get(key)) for key, inner in value.items()})  # type: ignore[operator]
