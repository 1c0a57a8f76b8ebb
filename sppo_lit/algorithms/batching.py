"""How an iteration's sequences are padded and cut: into minibatches, one optimizer step each, and micro-batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sppo_lit.errors import InputError


def pad_rows(
    rows: Sequence[Sequence[float] | Tensor], device: torch.device | str, dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor, padded on the right with 0, and their lengths.

    Args:
        rows: N of them, none of more than L entries.
        device: where the tensors go.
        dtype: of the entries.

    Returns:
        [N, L] of `dtype`, and [N] int64.
    """
    tensors = [torch.as_tensor(row, dtype=dtype) for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device), lengths


def earlier(keys: Iterable[int]) -> list[int]:
    """How often each key came before: [5, 7, 5] → [0, 0, 1]."""
    seen: Counter[int] = Counter()
    before = []
    for key in keys:
        before.append(seen[key])
        seen[key] += 1
    return before


def shared_minibatches(
    problems: int, samples: int, size: int, generator: torch.Generator, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """This rank's rows of a random partition of an iteration's sequences into minibatches.

    The partition is the same for any number of ranks. It is drawn in strata: sequence j (sample-major) competes only
    with those whose number equals j modulo `size`, so that each minibatch takes one of every stratum and hence equally
    many sequences of every rank, whatever their number.

    Args:
        problems: of the iteration, over all ranks; rank r samples problems r, r + world_size, …
        samples: of each problem, next to each other in a rank's batch.
        size: sequences of a minibatch, over all ranks; must divide problems · samples.
        generator: source of the partition, in the same state on all ranks.
        rank: this process.
        world_size: number of processes; must divide `problems` and `size`.

    Returns:
        problems · samples / size index tensors into this rank's batch, each [M] int64 with M = size / world_size.
    """
    strata = torch.stack([torch.randperm(problems * samples // size, generator=generator) for _ in range(size)], dim=1)
    sequences = strata * size + torch.arange(size)
    minibatches = []
    for row in sequences:
        problem, sample = row % problems, row // problems
        minibatches.append((problem // world_size * samples + sample)[problem % world_size == rank])
    return minibatches


def balanced_shares(rows: Tensor, lengths: Tensor, ranks: int) -> list[Tensor]:
    """A minibatch's rows shared out so that no rank has much more to compute than the others.

    The longest first, each to the rank with the fewest tokens so far (Graham, "Bounds on Multiprocessing Timing
    Anomalies", 1969: at most 4/3 − 1/(3·ranks) of the best possible). A rank may get more rows than another, or none.

    Args:
        rows: [N] int64.
        lengths: [B] int64 on the CPU, tokens of every row of the batch.
        ranks: number of shares.

    Returns:
        index tensors, together a permutation of `rows`; one keeps their order.
    """
    if ranks == 1:
        return [rows]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for i in torch.argsort(lengths[rows], descending=True, stable=True).tolist():
        least = tokens.index(min(tokens))
        shares[least].append(i)
        tokens[least] += int(lengths[rows[i]])
    return [rows[torch.tensor(sorted(share), dtype=torch.int64)] for share in shares]


def check_minibatch(problems: int, samples: int, size: int, ranks: int = 1) -> None:
    """An iteration's sequences must be cut into whole minibatches, and both into equal shares for the ranks.

    Args:
        problems: of one iteration, over all ranks.
        samples: of each problem.
        size: sequences of a minibatch, over all ranks.
        ranks: processes of the run.

    Raises:
        InputError: they cannot.
    """
    if problems * samples % size:
        wrong = "is larger than" if size > problems * samples else "does not divide"
        raise InputError(
            f"model.batch.minibatch_size {size} {wrong} the {problems * samples} sequences of an iteration "
            f"(data.problems_per_epoch {problems} × {samples} per problem); change one of them"
        )
    if problems % ranks or size % ranks:
        raise InputError(
            f"{ranks} processes cannot share data.problems_per_epoch {problems} and model.batch.minibatch_size {size} "
            "equally; make both multiples of the number of processes, or change --devices"
        )


PASSES = 16
"""A forward pass is taken to cost as much as 1/16 of a full budget of tokens, however few it holds."""


def micro_batches(lengths: Tensor, token_budget: int, *, sort: bool = True) -> list[Tensor]:
    """Cut a minibatch so that each piece, padded to its longest row, holds at most `token_budget` tokens.

    Sorting by length first makes neighbours alike. Of all cuts of the sorted rows the one is taken that computes least:
    tokens, padding included, and a sixteenth of the budget for every pass. So rows of very different length are not
    put together merely because they fit.

    Args:
        lengths: [N] int64, prompt plus response tokens of each row.
        token_budget: most tokens, padding included, of one forward pass; a single longer row still gets a pass alone.
        sort: False keeps the order of the rows (for comparison).

    Returns:
        index tensors into `lengths`, together a permutation of 0 … N−1.
    """
    order = torch.argsort(lengths, descending=True, stable=True) if sort else torch.arange(len(lengths))
    rows = lengths[order].tolist()
    least = [0.0] * (len(rows) + 1)  # cost of the rows from i on
    ends = [0] * len(rows)  # where the first piece of them ends
    for start in reversed(range(len(rows))):
        least[start], longest = math.inf, 0
        for end in range(start + 1, len(rows) + 1):
            longest = max(longest, rows[end - 1])
            tokens = longest * (end - start)
            if tokens > token_budget and end > start + 1:
                break
            if (cost := tokens + token_budget / PASSES + least[end]) < least[start]:
                least[start], ends[start] = cost, end
    pieces, start = [], 0
    while start < len(rows):
        pieces.append(order[start : ends[start]])
        start = ends[start]
    return pieces
