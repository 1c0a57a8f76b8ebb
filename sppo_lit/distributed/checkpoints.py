"""Checkpoints in distributed form: a folder to which every rank writes its own shards, while training goes on.

The tensors are in the format of `torch.distributed.checkpoint`, which any number of processes reads; everything else is
in `meta.pt`. `.metadata` is written last: a folder without it is not complete.
"""

from __future__ import annotations

import copy
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from sppo_lit.errors import USE_ITS_RECIPE, InputError
from sppo_lit.utils.files import duplicate, flush, remove, replace

META = "meta.pt"
_ALIASES = "aliases"
_PATIENCE = timedelta(days=1)  # ranks write for different times

OTHER_MODEL = (
    f"the checkpoint is of a different model than this recipe's ({{name}} is missing in one or has another shape); "
    f"{USE_ITS_RECIPE}"
)


class ShardWriter:
    """Writes checkpoints of sharded networks, one at a time. Create it on all ranks, which must call it together.

    Args:
        background: copy a rank's shards to CPU memory and write them while training goes on; otherwise without a copy.
    """

    def __init__(self, background: bool = True) -> None:
        self._background = background
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)  # a thread must not share the main one's
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, checkpoint: Mapping[str, Any], folder: Path, publish: Callable[[], None]) -> None:
        """Start to write a checkpoint; `publish` is called on rank zero when it is complete.

        Args:
            checkpoint: Lightning's, with sharded tensors in `state_dict` and `optimizer_states`.
            folder: must not exist.
            publish: moves the folder where it belongs.

        Raises:
            OSError: as `wait`.
        """
        self.wait()
        tensors, meta = split(checkpoint)
        if self._background:
            stager = DefaultStager(StagingOptions(False, False, False, False))
            tensors = cast(dict[str, Tensor], stager.stage(tensors))
            stager.close()
            self._thread = threading.Thread(target=self._write, args=(tensors, meta, folder, publish), daemon=True)
            self._thread.start()
        else:
            self._write(tensors, meta, folder, publish)
            self.wait()

    def wait(self) -> None:
        """Return when the checkpoint is written and published.

        Raises:
            OSError: on all ranks, if any could not write its part.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise OSError(f"a checkpoint could not be written: {failure}") from failure

    def _write(
        self, tensors: dict[str, Tensor], meta: dict[str, Any], folder: Path, publish: Callable[[], None]
    ) -> None:
        try:
            self._on_first(lambda: _write_meta(meta, folder))
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=self._group)
            self._on_first(publish)
        except Exception as error:
            self._failure = error

    def _on_first(self, work: Callable[[], None]) -> None:
        """Do something on rank zero, and raise on all ranks if it fails: the others would wait for it forever."""
        failure: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                work()
            except Exception as error:
                failure = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(failure, src=0, group=self._group)
        if failure[0] is not None:
            raise RuntimeError(failure[0])


def _write_meta(meta: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save(meta, folder / META)
    flush(folder / META)


def publish(temporary: Path, folder: Path, names: Sequence[str], iteration: int) -> None:
    """Put a complete checkpoint in place: a file as such, a folder under its iteration, with links to it.

    Links are replaced at once, where renaming folders would leave a moment without any.

    Args:
        temporary: file or folder in `folder`.
        folder: where the checkpoints are.
        names: "best", "last" or both.
        iteration: of the checkpoint.
    """
    second = folder / ".copy.tmp"
    if temporary.is_dir():
        free = (f"iteration-{iteration}" + (f".{i}" if i else "") for i in count())
        kept = next(folder / name for name in free if not (folder / name).exists())
        replace(temporary, kept)
        remove(temporary)
        temporary.symlink_to(kept.name)
    last = folder / "last.ckpt"
    if "last" in names and last.exists():
        duplicate(last, folder / "previous.ckpt")
    for name in names[:-1]:
        duplicate(temporary, second)
        replace(second, folder / f"{name}.ckpt")
    replace(temporary, folder / f"{names[-1]}.ckpt")
    used = {os.readlink(link) for link in folder.glob("*.ckpt") if link.is_symlink()}
    for old in folder.glob("iteration-*"):
        if old.name not in used:
            remove(old)


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by name, tied ones once, and a copy of the rest, scalars included."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, value in checkpoint["state_dict"].items():
        first = names.setdefault(id(value), name)
        if first != name:
            aliases[name] = first
        elif not _is_array(value):
            scalars[name] = value
        else:
            tensors[f"model/{name}"] = value.detach()
    meta = {**checkpoint, "state_dict": scalars, _ALIASES: aliases}
    if "optimizer_states" in checkpoint:
        meta["optimizer_states"] = [
            {**state, "state": _without_tensors(i, state["state"], tensors)}
            for i, state in enumerate(checkpoint["optimizer_states"])
        ]
    return tensors, copy.deepcopy(meta)


def _is_array(value: Any) -> bool:
    return isinstance(value, DTensor) or (torch.is_tensor(value) and value.ndim > 0)


def _without_tensors(number: int, state: Mapping[int, Mapping[str, Any]], tensors: dict[str, Tensor]) -> dict[int, Any]:
    """The counters of an optimizer's state; its moments are added to `tensors`."""
    counters: dict[int, dict[str, Any]] = {}
    for key, entries in state.items():
        counters[key] = {}
        for name, value in entries.items():
            if _is_array(value):
                tensors[f"optimizer/{number}/{key}/{name}"] = value
            else:
                counters[key][name] = value
    return counters


def _joined(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split`."""
    checkpoint = dict(meta)
    state = dict(checkpoint["state_dict"])
    state |= {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    state |= {alias: state[name] for alias, name in checkpoint.pop(_ALIASES).items()}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key, entry = name.split("/")
            checkpoint["optimizer_states"][int(number)]["state"][int(key)][entry] = value
    return {**checkpoint, "state_dict": state}


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether this is a folder with a complete checkpoint."""
    return (path / META).is_file() and (path / ".metadata").is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Everything except the tensors.

    Raises:
        ValueError: the folder is not a complete checkpoint, or one of its files is missing or cut short.
    """
    if not is_sharded_checkpoint(folder):
        raise ValueError(f"{folder} is not a complete checkpoint")
    ends: dict[str, int] = {}
    for part in dcp.FileSystemReader(folder).read_metadata().storage_data.values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size < end:
            raise ValueError(f"{folder / name} is missing or cut short")
    meta: dict[str, Any] = torch.load(folder / META, map_location="cpu", weights_only=True)
    return meta


def whole_checkpoint(folder: Path) -> dict[str, Any]:
    """A checkpoint in distributed form as one dict, like that of a file, in CPU memory; without other ranks."""
    reader = dcp.FileSystemReader(folder)
    saved = _saved_tensors(reader)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in saved.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as intended
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return _joined(tensors, read_meta(folder))


def _saved_tensors(reader: dcp.FileSystemReader) -> dict[str, TensorStorageMetadata]:
    entries = reader.read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def load_shards(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a sharded module's weights in place, and return the rest with every rank's shards of the optimizers' states.

    Each rank reads only its shards. Collective.

    Raises:
        InputError: the checkpoint is of a different model.
    """
    meta, reader = read_meta(folder), dcp.FileSystemReader(folder)
    saved = _saved_tensors(reader)
    own = {name: value.detach() for name, value in module.state_dict(keep_vars=True).items()}
    shapes = {name.removeprefix("model/"): entry.size for name, entry in saved.items() if name.startswith("model/")}
    shapes |= {name: value.shape for name, value in meta["state_dict"].items()}
    shapes |= {alias: shapes[name] for alias, name in meta[_ALIASES].items()}
    for name in sorted(own.keys() | shapes.keys()):
        if name not in own or name not in shapes or own[name].shape != shapes[name]:
            raise InputError(OTHER_MODEL.format(name=name))
    for name, value in meta["state_dict"].items():
        own[name].copy_(value)
    tensors = {f"model/{name}": value for name, value in own.items() if f"model/{name}" in saved}
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    for name, entry in saved.items():
        kind, *place = name.split("/")
        if kind == "optimizer" and optimizers:
            parameter = parameters[int(place[0])][int(place[1])].detach()
            same = parameter.shape == entry.size
            tensors[name] = torch.zeros_like(parameter) if same else torch.empty(entry.size)
    dcp.load(tensors, storage_reader=reader)
    if not optimizers:
        meta.pop("optimizer_states", None)
    return _joined(tensors, meta)
