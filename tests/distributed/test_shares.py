"""How an iteration is shared by ranks, without processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppo_lit.algorithms.batching import shared_minibatches
from sppo_lit.distributed import collectives as distributed
from sppo_lit.distributed.collectives import sum_gradients


@pytest.mark.parametrize(("problems", "samples", "size"), [(16, 1, 8), (32, 1, 32), (8, 4, 8), (24, 5, 12)])
@pytest.mark.parametrize("of", [2, 4])
def test_any_number_of_ranks_takes_the_same_minibatches_in_equal_parts(
    problems: int, samples: int, size: int, of: int
) -> None:
    def drawn(rank: int, of: int) -> list[torch.Tensor]:
        return shared_minibatches(problems, samples, size, torch.Generator().manual_seed(7), rank, of)

    alone = [set(rows.tolist()) for rows in drawn(0, 1)]
    assert sorted(row for rows in alone for row in rows) == list(range(problems * samples))
    together: list[set[int]] = [set() for _ in alone]
    for rank in range(of):
        for minibatch, rows in zip(together, drawn(rank, of), strict=True):
            assert len(rows) == size // of
            # Row j of rank r is sample j % samples of problem r + of · (j // samples).
            minibatch |= {(rank + of * (j // samples)) * samples + j % samples for j in rows.tolist()}
    assert together == alone


def test_partitions_differ_between_draws() -> None:
    generator = torch.Generator().manual_seed(7)
    first, second = (shared_minibatches(64, 1, 8, generator) for _ in range(2))
    assert [set(rows.tolist()) for rows in first] != [set(rows.tolist()) for rows in second]


def test_gradients_are_summed_in_buckets_whatever_their_shape_or_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [
        nn.Parameter(torch.zeros(shape, dtype=dtype))
        for shape, dtype in [
            ((2, 3), torch.float32),
            ((9,), torch.float32),
            ((), torch.float32),
            ((2,), torch.bfloat16),
        ]
    ]
    for i, p in enumerate(parameters[1:], start=1):
        p.grad = torch.full_like(p, float(i))
    sizes: list[int] = []

    def doubled(value: torch.Tensor) -> torch.Tensor:
        sizes.append(value.numel())
        return value.mul_(2)

    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(distributed, "reduced", doubled)
    monkeypatch.setattr(distributed, "BUCKET", 8)
    sum_gradients(parameters)
    assert sizes == [6, 9, 1, 2]
    for i, p in enumerate(parameters):
        assert p.grad is not None and torch.equal(p.grad, torch.full_like(p, 2.0 * i))
