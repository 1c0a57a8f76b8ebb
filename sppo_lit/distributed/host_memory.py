"""Tensors that wait in the host's memory while the device is needed for something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@contextmanager
def on_host(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Keep the contents of tensors in the host's memory inside the block; nothing may read them there.

    Their storages are emptied and filled again in place, so that every reference stays valid: an optimizer's, a sharded
    network's, views. On a CPU this copies bytes back and forth and saves nothing.

    Args:
        tensors: any dtype, shape and device; of a sharded one, this rank's shard.
    """
    kept: list[tuple[torch.UntypedStorage, Tensor]] = []
    try:
        for storage in _storages(tensors):
            kept.append((storage, _copy(storage)))
            storage.resize_(0)
        yield
    finally:
        for storage, content in kept:
            storage.resize_(content.numel())
            _bytes(storage).copy_(content)


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that `on_host` frees on the tensors' device."""
    return sum(storage.nbytes() for storage in _storages(tensors))


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Each storage once; of a sharded tensor, that of this rank's shard."""
    local = [tensor._local_tensor if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return list({t.untyped_storage()._cdata: t.untyped_storage() for t in local}.values())


def _copy(storage: torch.UntypedStorage) -> Tensor:
    """The contents of a storage in the host's memory, uint8."""
    return _bytes(storage).to("cpu", copy=True)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """The bytes of a storage, uint8, without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]
