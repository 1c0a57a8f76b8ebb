"""How an iteration's sequences are cut: into minibatches (one optimizer step each), and those into micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor


def minibatches(sequences: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A random partition of the rows into minibatches.

    Args:
        sequences: B.
        size: sequences per minibatch; must divide B, so that every rank takes equally many optimizer steps.
        generator: source of the permutation.

    Returns:
        B / size index tensors, each [size] int64.
    """
    return list(torch.randperm(sequences, generator=generator).split(size))


def micro_batches(lengths: Tensor, token_budget: int, *, sort: bool = True) -> list[Tensor]:
    """Cut a minibatch so that each piece, padded to its longest row, holds at most `token_budget` tokens.

    Sorting by length first makes neighbours alike, so that little of the budget is spent on padding.

    Args:
        lengths: [N] int64, prompt plus response tokens of each row.
        token_budget: most tokens, padding included, of one forward pass; a single longer row still gets a pass alone.
        sort: False keeps the order of the rows (for comparison).

    Returns:
        index tensors into `lengths`, together a permutation of 0 … N−1.
    """
    order = torch.argsort(lengths, descending=True, stable=True) if sort else torch.arange(len(lengths))
    pieces: list[list[int]] = []
    longest = 0
    for row in order.tolist():
        length = int(lengths[row])
        if pieces and max(longest, length) * (len(pieces[-1]) + 1) <= token_budget:
            pieces[-1].append(row)
            longest = max(longest, length)
        else:
            pieces.append([row])
            longest = length
    return [torch.tensor(piece) for piece in pieces]
