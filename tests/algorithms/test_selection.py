"""The choice from a pool: nearest the target, by position where equal, each problem once."""

from __future__ import annotations

import math

import torch

from sppo_lit.algorithms.selection import nearest

KEYS = list("abcdef")


def test_the_nearest_are_chosen_and_stay_in_the_order_of_the_pool() -> None:
    values = torch.tensor([0.9, 0.45, 0.1, 0.6, 0.52, 0.0])
    assert nearest(values, 0.5, 3, KEYS).tolist() == [1, 3, 4]
    assert nearest(values, 1.0, 2, KEYS).tolist() == [0, 3]
    assert nearest(values, 0.5, 6, KEYS).tolist() == [0, 1, 2, 3, 4, 5]


def test_of_equally_near_ones_the_earlier_is_chosen() -> None:
    assert nearest(torch.full((6,), 0.5), 0.5, 2, KEYS).tolist() == [0, 1]
    assert nearest(torch.tensor([0.75, 0.0, 0.25, 0.25, 0.75, 0.0]), 0.5, 3, KEYS).tolist() == [0, 2, 3]


def test_a_problem_is_chosen_once_and_one_without_value_last() -> None:
    values = torch.tensor([0.5, 0.5, math.nan, 0.9, 1.0, math.inf])
    assert nearest(values, 0.5, 3, list("aabcde")).tolist() == [0, 3, 4]
    assert nearest(values, 0.5, 5, list("aabcde")).tolist() == [0, 1, 2, 3, 4], "unless there are not enough others"
