"""Choosing the problems whose predicted success is nearest a target (cf. Prompt Curriculum Learning, 2510.01135)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def nearest(values: Tensor, target: float, count: int, keys: Sequence[Hashable]) -> Tensor:
    """The entries of a pool whose value is nearest a target.

    Of equally near ones the earlier is taken, so that equal values on all ranks give the same choice. An entry whose
    key stands earlier in the pool, or whose value is not finite, is taken only where there are not enough others.

    Args:
        values: [P] float.
        target: in the unit of the values.
        count: number of entries, at most P.
        keys: what identifies each entry, P of them.

    Returns:
        [count] int64 indices, ascending.
    """
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    repeated = torch.tensor([first[key] != place for place, key in enumerate(keys)])
    distance = (values.double() - target).abs()
    last = repeated | ~distance.isfinite()
    return torch.where(last, torch.inf, distance).argsort(stable=True)[:count].sort().values
