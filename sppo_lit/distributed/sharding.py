"""Sharded networks (FSDP2): each rank holds its pieces of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sppo_lit.distributed.collectives import reduced
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.lora import merged
from sppo_lit.models.policy import Policy

N = TypeVar("N", bound=Policy | ScalarCritic | TokenCritic)


def place(make: Callable[[bool], N], mesh: DeviceMesh | None, offload: bool = False) -> N:
    """A network; under sharding, this rank's pieces of the one that rank zero loads.

    Args:
        make: makes the network; called with True, without weights (on the meta device).
        mesh: device mesh of a sharded strategy; None for any other.
        offload: see `sharded`.
    """
    return make(False) if mesh is None else sharded(make, mesh["data_parallel"], offload)


def sharded(make: Callable[[bool], N], mesh: DeviceMesh, offload: bool = False) -> N:
    """A network of which each rank of a mesh holds its pieces. Collective.

    Rank zero loads it; the others never hold more of it than their pieces and one layer.

    Args:
        make: makes the network, a module with its model as `model`; called with True, without weights (on the meta
            device).
        mesh: one-dimensional device mesh of all ranks.
        offload: the pieces stay in the CPU's memory while they are not at work.

    Raises:
        InputError: on every rank, what `make` raised on rank zero.
    """
    loaded, failure = None, None
    if dist.get_rank() == 0:
        try:
            loaded = make(False)
        except Exception as error:  # told to the others, who would wait for ever
            failure = error
    told: list[Any] = [str(failure) if failure else None, None]
    if loaded is not None and loaded.model.can_generate():
        told[1] = loaded.model.generation_config
    dist.broadcast_object_list(told, src=0)
    if failure is not None or told[0] is not None:
        raise failure or InputError(told[0])
    with torch.random.fork_rng(devices=[]):
        network = make(True)
    if told[1] is not None:
        network.model.generation_config = told[1]
    values = None if loaded is None else {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    deliver = _Delivery(network, values, torch.device(mesh.device_type))
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    layers = set(network.model._no_split_modules or ())
    for module in list(network.model.modules()):
        if type(module).__name__ in layers:
            deliver(module)
            fully_shard(module, mesh=mesh, offload_policy=policy)
    deliver(network)
    # The root is given up after the forward pass too: otherwise one without a backward pass would leave it whole.
    fully_shard(network, mesh=mesh, offload_policy=policy, reshard_after_forward=True)
    return network


class _Delivery:
    """Gives a part of an empty network rank zero's values; what parts share stays shared. Collective."""

    def __init__(self, network: nn.Module, values: dict[str, Tensor] | None, device: torch.device) -> None:
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): (name, tensor) for name, tensor in named}  # the tensor is held: its id stays its own
        self.values, self.device = values, device
        self.made: dict[int, Tensor] = {}

    def __call__(self, part: nn.Module) -> None:
        for module in part.modules():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and tensor.is_meta:
                        table[key] = self._made(tensor)

    def _made(self, empty: Tensor) -> Any:
        if id(empty) not in self.made:
            name = self.names[id(empty)][0]
            if self.values is None:
                value = torch.empty(empty.shape, dtype=empty.dtype, device=self.device)
            else:
                value = self.values[name].detach().to(self.device, empty.dtype).contiguous()
            dist.broadcast(value, src=0)
            trained = isinstance(empty, nn.Parameter)
            self.made[id(empty)] = nn.Parameter(value, empty.requires_grad) if trained else value
        return self.made[id(empty)]


def is_sharded(network: nn.Module) -> bool:
    """Whether any parameter lies in pieces on several ranks."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def whole_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and whole values of all parameters, adapters merged, one at a time; all ranks must take part."""
    yield from merged(model, model.named_parameters(), whole_value)


def whole(value: Tensor) -> Tensor:
    """A tensor that may lie in pieces on several ranks, in one piece on each; all ranks must take part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_value(value: Tensor) -> Tensor:
    """`whole`, without gradient."""
    return whole(value.detach())


def missing_passes(network: nn.Module, passes: int, device: torch.device) -> int:
    """How many passes of a network this rank must add to its own, since those of a sharded network are joint."""
    if not isinstance(network, FSDPModule):
        return 0
    return int(reduced(torch.tensor(passes, device=device), dist.ReduceOp.MAX)) - passes
