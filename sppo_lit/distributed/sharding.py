"""Sharded networks (FSDP2): each rank holds a shard of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sppo_lit.distributed.collectives import reduced
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.lora import merged
from sppo_lit.models.policy import Policy

N = TypeVar("N", bound=Policy | ScalarCritic | TokenCritic)


def place(
    make: Callable[[bool], N], mesh: DeviceMesh | None, offload: bool = False, compute: torch.dtype | None = None
) -> N:
    """A network; with a device mesh, sharded over its ranks.

    Args:
        make: creates the network; if called with True, without weights (on the meta device).
        mesh: device mesh of a sharded strategy; None for other strategies.
        offload: see `sharded`.
        compute: see `sharded`.
    """
    return make(False) if mesh is None else sharded(make, mesh["data_parallel"], offload, compute)


def sharded(
    make: Callable[[bool], N], mesh: DeviceMesh, offload: bool = False, compute: torch.dtype | None = None
) -> N:
    """A network sharded over the ranks of a mesh. Collective.

    Rank zero loads it; the other ranks never hold more than their shards and one layer.

    Args:
        make: creates the network, a module with a `model`; if called with True, without weights (on the meta device).
        mesh: one-dimensional device mesh of all ranks.
        offload: keep shards in CPU memory while they are not in use.
        compute: see `shard`.

    Raises:
        InputError: on every rank, the error that `make` raised on rank zero.
    """
    loaded, failure = None, None
    if dist.get_rank() == 0:
        try:
            loaded = make(False)
        except Exception as error:  # broadcast below, or the other ranks would wait forever
            failure = error
    message = str(failure) if failure else None
    generation = loaded.model.generation_config if loaded is not None and loaded.model.can_generate() else None
    broadcast: list[Any] = [message, generation]
    dist.broadcast_object_list(broadcast, src=0)
    message, generation = broadcast
    if failure is not None or message is not None:
        raise failure or InputError(message)
    with torch.random.fork_rng(devices=[]):
        network = make(True)
    if generation is not None:
        network.model.generation_config = generation
    values = None if loaded is None else {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    broadcast_weights = _WeightBroadcast(network, values, torch.device(mesh.device_type))
    shard(network, mesh, offload, compute, broadcast_weights)
    return network


def shard(
    network: nn.Module,
    mesh: DeviceMesh,
    offload: bool = False,
    compute: torch.dtype | None = None,
    materialise: Callable[[nn.Module], None] = lambda module: None,
) -> None:
    """Shard each decoder layer of a network, and then what remains of it, in place.

    Args:
        network: a module with a `model`.
        mesh: one-dimensional device mesh of all ranks.
        offload: keep shards in CPU memory while they are not in use.
        compute: dtype in which weights are gathered and passes computed; shards, gradients and their sums over ranks
            keep that of the weights. None for that of the weights.
        materialise: called with each part before it is sharded.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32 if compute else None),
    }
    layers = set(network.model._no_split_modules or ())  # type: ignore[union-attr, arg-type]
    for module in list(network.model.modules()):  # type: ignore[union-attr, operator]
        if type(module).__name__ in layers:
            materialise(module)
            fully_shard(module, **options)
    materialise(network)
    # Reshard the root too: a forward pass without backward would leave it gathered.
    fully_shard(network, **options, reshard_after_forward=True)


class _WeightBroadcast:
    """Materialises a part of a network with rank zero's values; tied tensors stay tied. Collective."""

    def __init__(self, network: nn.Module, values: dict[str, Tensor] | None, device: torch.device) -> None:
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): (name, tensor) for name, tensor in named}  # holds the tensor: its id stays unique
        self.values, self.device = values, device
        self.materialised: dict[int, Tensor] = {}

    def __call__(self, part: nn.Module) -> None:
        for module in part.modules():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and tensor.is_meta:
                        table[key] = self._materialise(tensor)

    def _materialise(self, empty: Tensor) -> Any:
        if id(empty) not in self.materialised:
            name = self.names[id(empty)][0]
            if self.values is None:
                value = torch.empty(empty.shape, dtype=empty.dtype, device=self.device)
            else:
                value = self.values[name].detach().to(self.device, empty.dtype).contiguous()
            dist.broadcast(value, src=0)
            trained = isinstance(empty, nn.Parameter)
            self.materialised[id(empty)] = nn.Parameter(value, empty.requires_grad) if trained else value
        return self.materialised[id(empty)]


def is_sharded(network: nn.Module) -> bool:
    """Whether any parameter is sharded."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def whole_parameters(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and unsharded values of all parameters, one at a time, with merged adapters. Collective.

    Args:
        model: a sharded model, or a whole one.
        dtype: converted to it before they are gathered, which halves what is sent; None for their own.
    """

    def value(tensor: Tensor) -> Tensor:
        return whole_value(tensor if dtype is None else tensor.to(dtype))

    yield from merged(model, model.named_parameters(), value)


def whole(value: Tensor) -> Tensor:
    """The unsharded value of a tensor. Collective if it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_value(value: Tensor) -> Tensor:
    """`whole` without gradient."""
    return whole(value.detach())


def missing_passes(network: nn.Module, passes: int, device: torch.device) -> int:
    """Extra passes of a sharded network, whose passes are collective, that this rank needs to match the others."""
    if not isinstance(network, FSDPModule):
        return 0
    return int(reduced(torch.tensor(passes, device=device), dist.ReduceOp.MAX)) - passes
