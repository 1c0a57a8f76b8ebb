"""Bytes of the tensors that are alive, counted storage by storage; works alike with fake and with real tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageTracker(TorchDispatchMode):
    """Counts the storages that operators make, from entering the context on; those from before are given by `add`.

    Torch's own `FSDPMemTracker` follows one sharded network and one pass through it; here are two networks, passes
    without gradient between those with, and the sampler. Counting storages needs neither hooks on modules nor names.

    Attributes:
        live: bytes held now.
        peaks: greatest `live` within each `phase`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peaks: dict[str, int] = {}
        self._phases: list[str] = []
        self._sizes: dict[int, int] = {}  # by number of the storage
        self._numbers: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._resize = torch.UntypedStorage.resize_

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._see(tensor)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak of a block under a name; the same name again keeps the greater one."""
        self._phases.append(name)
        self._record()
        try:
            yield
        finally:
            self._phases.remove(name)

    def __enter__(self) -> Any:
        """Also follow storages that are resized in place, as sharding frees what it has gathered."""
        tracker, original = self, self._resize

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            tracker._set(storage, size)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it has made."""
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # taken apart into operators on shards, which come here again
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor._local_tensor
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._set(storage, storage.nbytes())

    def _set(self, storage: torch.UntypedStorage, size: int) -> None:
        number = self._numbers.get(storage)
        if number is None:
            number = self._numbers[storage] = len(self._sizes)
            self._sizes[number] = 0
            weakref.finalize(storage, self._forget, number).atexit = False
        self.live += size - self._sizes[number]
        self._sizes[number] = size
        self._record()

    def _forget(self, number: int) -> None:
        self.live -= self._sizes[number]
        self._sizes[number] = 0

    def _record(self) -> None:
        for name in self._phases:
            self.peaks[name] = max(self.peaks.get(name, 0), self.live)
