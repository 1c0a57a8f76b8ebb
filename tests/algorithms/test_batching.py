"""No sequence is lost, repeated or left to chance when an iteration is cut."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_lit.algorithms.batching import PASSES, balanced_shares, micro_batches, shared_minibatches


def test_minibatches_are_a_partition_that_the_seed_decides() -> None:
    def cut(seed: int) -> list[torch.Tensor]:
        return shared_minibatches(24, 1, 8, torch.Generator().manual_seed(seed))

    pieces = cut(1)
    assert [len(p) for p in pieces] == [8, 8, 8]
    assert sorted(torch.cat(pieces).tolist()) == list(range(24))
    assert torch.equal(torch.cat(pieces), torch.cat(cut(1))) and not torch.equal(torch.cat(pieces), torch.cat(cut(2)))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 9000), min_size=0, max_size=40), ranks=st.integers(1, 8))
def test_shares_are_a_partition_within_four_thirds_of_the_best(lengths: list[int], ranks: int) -> None:
    every, rows = torch.tensor([5, *lengths]), torch.arange(1, len(lengths) + 1)
    shares = balanced_shares(rows, every, ranks)
    assert len(shares) == ranks and sorted(torch.cat(shares).tolist()) == rows.tolist()
    assert ranks > 1 or torch.equal(shares[0], rows), "one process keeps its order"
    bound = max(
        max(lengths, default=0), sum(lengths) / ranks, sum(sorted(lengths, reverse=True)[ranks - 1 : ranks + 1])
    )
    assert max(int(every[share].sum()) for share in shares) <= 4 / 3 * bound


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=40), budget=st.integers(1, 400), sort=st.booleans())
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int, sort: bool) -> None:
    pieces = [p.tolist() for p in micro_batches(torch.tensor(lengths), budget, sort=sort)]
    rows = [row for piece in pieces for row in piece]
    assert sorted(rows) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * max(lengths[i] for i in piece) <= budget
    if sort:
        read = [lengths[i] for i in rows]
        assert read == sorted(read, reverse=True)
    else:
        assert rows == list(range(len(lengths)))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8), budget=st.integers(1, 300))
def test_no_other_cut_of_the_sorted_rows_computes_less(lengths: list[int], budget: int) -> None:
    rows = sorted(lengths, reverse=True)

    def cost(pieces: list[list[int]]) -> float:
        if any(len(p) > 1 and len(p) * max(p) > budget for p in pieces):
            return math.inf
        return sum(len(p) * max(p) + budget / PASSES for p in pieces)

    cuts = itertools.product((False, True), repeat=len(rows) - 1)
    least = min(
        cost([rows[i:j] for i, j in itertools.pairwise([0, *(k + 1 for k, c in enumerate(cut) if c), len(rows)])])
        for cut in cuts
    )
    found = micro_batches(torch.tensor(lengths), budget)
    assert cost([[lengths[i] for i in piece.tolist()] for piece in found]) == pytest.approx(least)


def test_sorting_saves_padding() -> None:
    lengths = torch.randint(16, 97, (128,), generator=torch.Generator().manual_seed(0))

    def computed(sort: bool) -> int:
        return sum(len(p) * int(lengths[p].max()) for p in micro_batches(lengths, 1024, sort=sort))

    assert computed(True) < 1.1 * int(lengths.sum()) < computed(False)
