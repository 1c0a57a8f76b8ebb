"""`--strategy fsdp`: FSDP2 through Lightning's `ModelParallelStrategy`, on GPUs as on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from sppo_lit.distributed.checkpoints import OTHER_MODEL, load_shards
from sppo_lit.distributed.sharding import whole
from sppo_lit.errors import InputError

SaveShards = Callable[[dict[str, Any], Path], None]
"""Called with Lightning's checkpoint, whose tensors are sharded, and the path to write."""


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes; a checkpoint is one file that loads under any strategy and number of processes.

    Args:
        offload: keep shards in CPU memory while they are not in use.

    Attributes:
        shards: writes checkpoints in distributed form; None writes one file, for which rank zero gathers everything.
    """

    def __init__(self, offload: bool = False) -> None:
        # Norms and checkpoints of offloaded shards need collectives on the CPU.
        backend = "cpu:gloo,cuda:nccl" if offload and torch.cuda.is_available() else None
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
        self.offload = offload
        self.shards: SaveShards | None = None

    def setup_environment(self) -> None:
        """Make every process a data-parallel rank; Lightning's "auto" would give all of them the same batch."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move everything except offloaded shards."""
        super().model_to_device()
        assert self.lightning_module is not None
        for network in self.lightning_module.children() if self.offload else ():
            network.to("cpu")
            for module in network.modules():
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(self.root_device)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizers are restored by `load_optimizer_state_dict`."""
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the weights; optimizers are restored later.

        Raises:
            InputError: the checkpoint is of a different model.
        """
        assert self.lightning_module is not None
        if Path(checkpoint_path).is_dir():
            return load_shards(Path(checkpoint_path), self.lightning_module, [_own(o) for o in self.optimizers])
        if Path(checkpoint_path).is_file():
            saved = torch.load(checkpoint_path, mmap=True, map_location="cpu", weights_only=True)["state_dict"]
            own = self.lightning_module.state_dict()
            for name in sorted(own.keys() | saved.keys()):
                if name not in own or name not in saved or own[name].shape != saved[name].shape:
                    raise InputError(OTHER_MODEL.format(name=name))
        optimizers, self.optimizers = self.optimizers, []
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Sharded, tied tensors as one object, for a checkpoint in distributed form; else whole on rank zero."""
        if self.shards is None:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        return self.lightning_module.state_dict(keep_vars=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint in the form that `shards` decides."""
        if self.shards is None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        else:
            self.shards(checkpoint, Path(filepath))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict of an unsharded optimizer on rank zero; empty on the others. Collective.

        (Torch's own gathering initialises a fresh optimizer by a step with zero gradients, which Adam counts: saving
        during the critic's warm-up would change how the policy trains afterwards.)
        """
        state = _own(optimizer).state_dict()
        if self.shards is not None:
            return state
        gathered = {}
        for key, entries in state["state"].items():
            full = {name: whole(value) for name, value in entries.items()}
            gathered[key] = {name: value.cpu() for name, value in full.items()} if self.is_global_zero else {}
        return {**state, "state": gathered} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the saved state over the ranks."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shards = {
                key: {name: _like(value, parameters[key]) for name, value in entries.items()}
                for key, entries in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shards})


def _own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Without Lightning's wrapper."""
    return getattr(optimizer, "_optimizer", optimizer)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
