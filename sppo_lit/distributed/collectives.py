"""What ranks do together: sums over ranks, joint passes, sharded models. One process needs none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.models.lora import merged

BUCKET = 2**25
"""Gradient elements summed over ranks at a time (128 MiB in float32)."""


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes; a checkpoint is one file, which loads under any strategy and number of processes.

    Args:
        offload: pieces of networks stay in the CPU's memory while they are not at work.
    """

    def __init__(self, offload: bool = False) -> None:
        sizes: dict[str, Any] = {"data_parallel_size": 1, "tensor_parallel_size": 1}
        # Norms and checkpoints of pieces that are in the CPU's memory are added up there.
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(**sizes, save_distributed_checkpoint=False, process_group_backend=backend)
        self.offload = offload

    def setup_environment(self) -> None:
        """Every process is a rank of its own; Lightning's "auto" would give all of them the same batch."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Everything but pieces that stay in the CPU's memory."""
        super().model_to_device()
        assert self.lightning_module is not None
        for network in self.lightning_module.children() if self.offload else ():
            network.to("cpu")
            for module in network.modules():
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(self.root_device)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Restored by `load_optimizer_state_dict`."""
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the weights; optimizers come later.

        Raises:
            InputError: they are another model's.
        """
        if Path(checkpoint_path).is_file():
            assert self.lightning_module is not None
            saved = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)["state_dict"]
            own = self.lightning_module.state_dict()
            for name in sorted(own.keys() | saved.keys()):
                if name not in own or name not in saved or own[name].shape != saved[name].shape:
                    raise InputError(
                        f"the checkpoint is of another model than this recipe's ({name} is in one only or of another "
                        "shape); use the recipe it was trained with: config.yaml in its run folder"
                    )
        optimizers, self.optimizers = self.optimizers, []
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state as an unsharded optimizer would have it, on rank zero; empty on the others. Collective.

        (Torch's own gathering begins a fresh optimizer by a step with zero gradients, which Adam counts: saving during
        the critic's warm-up would change what the policy learns afterwards.)
        """
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        gathered = {}
        for key, entries in state["state"].items():
            full = {name: whole(value) for name, value in entries.items()}
            gathered[key] = {name: value.cpu() for name, value in full.items()} if self.is_global_zero else {}
        return {**state, "state": gathered} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its pieces of the saved state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            pieces = {
                key: {name: _like(value, parameters[key]) for name, value in entries.items()}
                for key, entries in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": pieces})


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


# ------------------------------------------------------------------------------------------------------ collectives


def ranks() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduced(value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """A tensor reduced over ranks, in place; elementwise, the same bits on every rank."""
    if ranks() > 1:
        dist.all_reduce(value, op)
    return value


def gathered(value: Tensor) -> Tensor:
    """[N] of every rank, as many on each, in the order of the ranks: [N · ranks]."""
    if ranks() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(ranks())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over ranks.

    Those of a sharded model were averaged over ranks, and sharded, in the backward pass.
    """
    n = ranks()
    if n == 1:
        return
    bucket: list[Tensor] = []
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if isinstance(p.grad, DTensor):
            p.grad.mul_(n)
            continue
        if bucket and (sum(g.numel() for g in bucket) + p.grad.numel() > BUCKET or bucket[0].dtype != p.grad.dtype):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(p.grad)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = reduced(torch.cat([g.reshape(-1) for g in gradients]))
    for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def missing_passes(network: nn.Module, passes: int, device: torch.device) -> int:
    """How many passes of a network this rank must add to its own, since those of a sharded network are joint."""
    if not isinstance(network, FSDPModule):
        return 0
    return int(reduced(torch.tensor(passes, device=device), dist.ReduceOp.MAX)) - passes


# ------------------------------------------------------------------------------------------------------ sharded models


def sharded(make: Callable[[bool], Any], mesh: Any, offload: bool = False) -> Any:
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
    told = [str(failure) if failure else None, getattr(loaded and loaded.model, "generation_config", None)]
    dist.broadcast_object_list(told, src=0)
    if failure is not None or told[0] is not None:
        raise failure or InputError(told[0])
    with torch.random.fork_rng(devices=[]):
        network = make(True)
    if told[1] is not None:
        network.model.generation_config = told[1]
    values = None if loaded is None else {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    deliver = _Delivery(network, values, torch.device(mesh.device_type))
    pieces: dict[str, Any] = {"mesh": mesh}
    if offload:
        pieces["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    layers = set(network.model._no_split_modules or ())
    for module in list(network.model.modules()):
        if type(module).__name__ in layers:
            deliver(module)
            fully_shard(module, **pieces)
    deliver(network)
    # The root is given up after the forward pass too: otherwise one without a backward pass would leave it whole.
    fully_shard(network, **pieces, reshard_after_forward=True)
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


def unsharded_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model of the same architecture and precision, whole, without adapters; its weights are yet to be set."""
    with torch.random.fork_rng(), torch.device(device):
        copy: Any = type(model)(model.config)
    return copy.to(model.dtype).requires_grad_(False).eval()
