"""Masks and token weights against plain loops over the sequences, on ragged batches."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_lit.algorithms.masking import masked_sum, response_mask, token_weights
from sppo_lit.types import Aggregation

MODES = get_args(Aggregation)
NORM = 50


def aggregated(rows: list[list[float]], mode: str) -> float:
    """The loss of a whole minibatch as each mode is described in its paper, one list of token losses a sequence."""
    if mode == "token-mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    per_sequence = {
        "seq-mean-token-mean": [sum(row) / len(row) for row in rows],
        "seq-mean-token-sum": [sum(row) for row in rows],
        "seq-mean-token-sum-norm": [sum(row) / NORM for row in rows],
    }
    return sum(per_sequence[mode]) / len(rows)


def padded(rows: list[list[float]], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    values = torch.tensor([row + [fill] * (width - len(row)) for row in rows])
    return values, torch.tensor([len(row) for row in rows])


def test_nan_in_padding_reaches_neither_sums_nor_gradients() -> None:
    values, lengths = padded([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], float("nan"))
    values.requires_grad_()
    mask = response_mask(lengths, 3)
    total = masked_sum(values, mask)
    assert float(total.detach()) == 21
    total.backward()
    assert torch.equal(values.grad, mask.float())


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), seed=st.integers(0, 2**16))
def test_weighted_sum_is_the_aggregated_loss_however_the_minibatch_is_cut(
    mode: Any, lengths: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    rows = [[rng.uniform(-2, 2) for _ in range(n)] for n in lengths]
    order = list(range(len(rows)))
    rng.shuffle(order)
    pieces, total = [], 0.0
    while order:
        pieces.append([order.pop() for _ in range(min(len(order), rng.randint(1, 4)))])
    for piece in pieces:
        values, sizes = padded([rows[i] for i in piece], float("nan"))
        mask = response_mask(sizes, values.shape[1])
        weights = token_weights(mask, mode, sequences=len(rows), tokens=sum(lengths), norm_length=NORM)
        assert weights.dtype == torch.float32 and not weights[~mask].any() and bool((weights[mask] > 0).all())
        total += float(masked_sum(values * weights, mask))
    assert total == pytest.approx(aggregated(rows, mode), abs=1e-5)


def test_an_unknown_aggregation_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'mean' is none of token-mean, .*seq-mean-token-sum-norm"):
        token_weights(torch.ones(1, 1).bool(), "mean", sequences=1, tokens=1, norm_length=1)  # type: ignore[arg-type]
