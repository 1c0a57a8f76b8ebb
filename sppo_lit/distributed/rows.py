"""An iteration's sequences on every rank, so that any rank may learn from any of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.distributed.collectives import ranks, reduced
from sppo_lit.types import TrainingBatch

T = TypeVar("T")


def whole_batch(batch: TrainingBatch, samples: int) -> TrainingBatch:
    """The sequences of all ranks, in the order of a single process; `scored` stays behind. Collective.

    A rank's sequences take far less memory than their activations: about 25 bytes a token.

    Args:
        batch: of this rank r of w, which sampled the problems r, r + w, r + 2·w, …; equally many sequences on all.
        samples: sequences of each problem, next to each other.

    Returns:
        `batch` itself in a single process.
    """
    if ranks() == 1:
        return batch
    wide = torch.tensor([batch.prompt_ids.shape[1], batch.response_ids.shape[1]], device=batch.prompt_ids.device)
    prompt, response = reduced(wide, dist.ReduceOp.MAX).tolist()
    gathered: dict[str, Any] = {}
    for name, value in batch.tensors().items():
        if value.ndim == 2:
            width = prompt if name == "prompt_ids" else response
            value = torch.nn.functional.pad(value, (0, width - value.shape[1]))
        gathered[name] = _in_order(value, samples)
    return replace(batch, **gathered, scored=[])


def own_rows(total: int, samples: int, rank: int, world_size: int) -> Tensor:
    """Where a rank's own sequences are in `whole_batch` of `total` sequences: [total / world_size] int64."""
    return torch.arange(total).view(-1, world_size, samples)[:, rank].reshape(-1)


def whole_list(entries: list[T], samples: int) -> list[T]:
    """The same for one Python object a sequence. Collective."""
    n = ranks()
    if n == 1:
        return entries
    parts: list[Any] = [None] * n
    dist.all_gather_object(parts, entries)
    return [parts[r][q * samples + s] for q in range(len(entries) // samples) for r in range(n) for s in range(samples)]


def _in_order(value: Tensor, samples: int) -> Tensor:
    sent = (value.to(torch.uint8) if value.dtype == torch.bool else value).contiguous()
    parts = [torch.empty_like(sent) for _ in range(ranks())]
    dist.all_gather(parts, sent)
    rest = sent.shape[1:]
    ordered = torch.stack([part.view(-1, samples, *rest) for part in parts], dim=1)  # [problems, ranks, samples, …]
    return ordered.reshape(-1, *rest).to(value.dtype)
