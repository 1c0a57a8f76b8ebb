"""A module's settings in its checkpoints, so that `load_from_checkpoint` needs nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import lightning.pytorch as pl
import torch

from sppo_lit.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class Reloadable(pl.LightningModule):
    """A module whose `__init__` calls `save_hyperparameters(logger=False)`; see `load_from_checkpoint`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings as plain values, which are read without running the code of a pickle."""
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain(self.hparams)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any
    ) -> Self:
        """The module of a checkpoint, with the settings that it was trained with.

        Args:
            checkpoint_path: a file.
            *args: as in Lightning.
            **kwargs: as in Lightning; settings among them replace those of the checkpoint.

        Raises:
            InputError: a sharded checkpoint.
        """
        if Path(checkpoint_path).is_dir():
            raise InputError(f"{checkpoint_path}: a sharded checkpoint; make one file of it with: sppo convert")
        content = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        saved = content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        hints = get_type_hints(cls.__init__)
        given = {key: rebuilt(value, hints.get(key)) for key, value in saved.items()}
        return super().load_from_checkpoint(checkpoint_path, *args, **{**given, **kwargs})


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
