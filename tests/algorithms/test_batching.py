"""No sequence is lost, repeated or left to chance when an iteration is cut."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_lit.algorithms.batching import micro_batches, shared_minibatches


def test_minibatches_are_a_partition_that_the_seed_decides() -> None:
    def cut(seed: int) -> list[torch.Tensor]:
        return shared_minibatches(24, 1, 8, torch.Generator().manual_seed(seed))

    pieces = cut(1)
    assert [len(p) for p in pieces] == [8, 8, 8]
    assert sorted(torch.cat(pieces).tolist()) == list(range(24))
    assert torch.equal(torch.cat(pieces), torch.cat(cut(1))) and not torch.equal(torch.cat(pieces), torch.cat(cut(2)))


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
    for piece, following in itertools.pairwise(pieces):
        joined = [*piece, following[0]]
        assert len(joined) * max(lengths[i] for i in joined) > budget, "a pass is closed only when it is full"


def test_sorting_saves_padding() -> None:
    lengths = torch.randint(16, 97, (128,), generator=torch.Generator().manual_seed(0))

    def computed(sort: bool) -> int:
        return sum(len(p) * int(lengths[p].max()) for p in micro_batches(lengths, 1024, sort=sort))

    assert computed(True) < 1.1 * int(lengths.sum()) < computed(False)
