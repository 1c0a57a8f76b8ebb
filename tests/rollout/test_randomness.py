"""Random numbers that depend on the sequence alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sppo_lit.rollout import sequence_key, uniforms

KEY = 10471335940740413319
ROW = [0.2262475045108887, 0.2923096750758605, 0.4200822001091563]


def test_a_key_is_64_bits_stable_and_tells_its_parts_apart() -> None:
    # A literal: a run resumed by a later version must draw the same responses.
    assert sequence_key(0, 1, "gsm8k/train/17", 2) == KEY
    parts = [("ab", "c"), ("a", "bc"), (1, 2), ("1", "2"), (12,), ("12",), (1, 2, 0), (-1, 2), ()]
    keys = [sequence_key(*p) for p in parts]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**64 for key in keys)


def test_uniforms_are_pinned() -> None:
    assert uniforms([KEY], 3).tolist() == [ROW]


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 40))
def test_a_row_depends_on_its_key_alone_and_is_prefix_stable(keys: list[int], length: int, more: int) -> None:
    rows = uniforms(keys, length + more)
    assert rows.shape == (len(keys), length + more) and rows.dtype == np.float64
    for row, key in zip(rows, keys, strict=True):
        assert np.array_equal(row[:length], uniforms([key], length)[0])


def test_rows_of_neighbouring_keys_are_uniform_and_uncorrelated() -> None:
    rows = uniforms(range(400), 500)
    assert rows.min() >= 0 and rows.max() < 1
    counts = np.histogram(rows, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 149, "the 0.1 % point of 99 degrees of freedom"
    correlations = np.corrcoef(rows)[np.triu_indices(400, 1)]
    assert abs(correlations.mean()) < 4 / np.sqrt(500 * len(correlations))
