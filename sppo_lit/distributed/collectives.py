"""Collectives over all ranks; no-ops in a single process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BUCKET = 2**25
"""Gradient elements per all-reduce (128 MiB in float32)."""


def ranks() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduced(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """All-reduce a tensor in place; every rank gets the same bits."""
    if ranks() > 1:
        dist.all_reduce(value, op)
    return value


def gathered(value: Tensor) -> Tensor:
    """Concatenate [N] of every rank, equally long on all, in rank order: [N · ranks]."""
    if ranks() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(ranks())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over ranks.

    Gradients of a sharded model were already averaged over ranks in the backward pass.
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
