"""Device, precision and backward pass of Lightning's strategy, for the parts of a module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from sppo_lit.distributed.sharding import missing_passes
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.policy import Policy
from sppo_lit.utils.console import console

Network = Policy | ScalarCritic | TokenCritic


def compute_dtype(trainer: pl.Trainer | None) -> torch.dtype | None:
    """Dtype of forward passes, where it is not that of the weights; None where it is, or without a trainer."""
    return torch.bfloat16 if trainer is not None and str(trainer.precision) == "bf16-mixed" else None


@dataclass(frozen=True)
class Runtime:
    """Device, rank and precision of this process.

    Attributes:
        device: device of the networks.
        rank: global rank of this process.
        ranks: number of processes.
        compute: dtype of passes, where it is not that of the weights; None where it is.
        autocast: context of a forward pass outside `training_step`, in the precision of the run.
        backward: replaces ``loss.backward()``.
        local_gradients: context without gradient synchronisation, so that gradients are summed over ranks once per
            minibatch instead of once per micro-batch.
    """

    device: torch.device
    rank: int
    ranks: int
    compute: torch.dtype | None
    autocast: Callable[[], AbstractContextManager[object]]
    backward: Callable[[Tensor], None]
    local_gradients: Callable[[], AbstractContextManager[object]]

    @classmethod
    def of(cls, module: pl.LightningModule) -> Runtime:
        """The runtime of a module that has a trainer."""
        trainer, strategy = module.trainer, module.trainer.strategy
        return cls(
            device=strategy.root_device,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            compute=compute_dtype(trainer),
            autocast=trainer.precision_plugin.forward_context,
            backward=module.manual_backward,
            local_gradients=strategy.block_backward_sync if isinstance(strategy, ParallelStrategy) else nullcontext,
        )

    @classmethod
    def single(cls, device: torch.device) -> Runtime:
        """One process without a trainer, in the precision of the weights."""
        return cls(device, 0, 1, None, nullcontext, Tensor.backward, nullcontext)

    def say(self, line: str) -> None:
        """Print one line on rank zero."""
        if self.rank == 0:
            console.print(line, markup=False, soft_wrap=True)

    def join_passes(self, network: nn.Module, passes: int) -> None:
        """Under sharding, where passes are collective, let a rank with fewer passes than others catch up.

        The extra passes read one dummy token and leave the gradient unchanged.
        """
        for _ in range(missing_passes(network, passes, self.device)):
            assert isinstance(network, Network)  # others are not sharded
            zero = network.empty_pass(self.device)
            if zero.requires_grad:
                self.backward(zero)
