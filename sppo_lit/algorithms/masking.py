"""Masks from lengths, masked means, and how a loss over tokens becomes one number.

A mask never multiplies: 0 × NaN is NaN, so padding is replaced (`torch.where`) before anything is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from sppo_lit.types import Aggregation


def response_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Which positions hold a sampled token.

    Args:
        lengths: [B] int64, response lengths, the end-of-sequence token counted.
        max_length: T.

    Returns:
        [B, T] bool.
    """
    return torch.arange(max_length, device=lengths.device)[None, :] < lengths[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` ([...]) where `mask` (same shape, bool) is True; a scalar. Padding may hold NaN."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def masked_moments(
    values: Tensor, mask: Tensor, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations from it, and number of `values` ([...]) where `mask` (same shape) is True.

    Args:
        values: floating point; padding may hold NaN.
        mask: bool.
        sum_over_ranks: sums a tensor over ranks.

    Returns:
        three scalars of the dtype of `values`.
    """
    count = sum_over_ranks(mask.sum().to(values.dtype))
    mean = sum_over_ranks(masked_sum(values, mask)) / count
    return mean, sum_over_ranks(masked_sum((values - mean).square(), mask)), count


def token_weights(mask: Tensor, mode: Aggregation, *, sequences: int, tokens: int, norm_length: int) -> Tensor:
    """Weight of every token so that the weighted sum over *all* micro-batches and ranks is the aggregated loss.

    The totals are those of the whole minibatch, so a micro-batch's weights do not depend on how the minibatch was
    cut: summing over micro-batches of 1 × 8 or 8 × 1 sequences, on one rank or two, gives the same number.

    Args:
        mask: [B, T] bool, the tokens of this micro-batch that the loss is taken over.
        mode: `token-mean` (the paper's; DAPO's), `seq-mean-token-mean` (GRPO's), `seq-mean-token-sum`, or
            `seq-mean-token-sum-norm` (Dr. GRPO: divided by a constant instead of the length).
        sequences: in the whole minibatch over all ranks.
        tokens: unmasked tokens in the whole minibatch over all ranks.
        norm_length: the constant of `seq-mean-token-sum-norm`, usually the longest allowed response.

    Returns:
        [B, T] float32, zero where masked.

    Raises:
        ValueError: unknown mode.
    """
    lengths = mask.sum(dim=1)
    one = torch.ones_like(lengths, dtype=torch.float32)
    per_sequence = {
        "token-mean": one / tokens,
        "seq-mean-token-mean": 1.0 / (lengths.clamp(min=1).float() * sequences),
        "seq-mean-token-sum": one / sequences,
        "seq-mean-token-sum-norm": one / (sequences * norm_length),
    }
    if mode not in per_sequence:
        raise ValueError(f"aggregation {mode!r} is none of {', '.join(get_args(Aggregation))}")
    return torch.where(mask, per_sequence[mode][:, None], 0.0)
