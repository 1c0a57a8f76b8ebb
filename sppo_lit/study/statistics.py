"""Statistics over a few seeds: interquartile mean, probability of improvement, bootstrap intervals.

As Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical Precipice") recommend for few runs.
Seeds are drawn anew with replacement within each cell, so that every replicate has as many runs of each as the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float, float]
"""An estimate and the ends of its 95 % interval; NaN ends where there is a single run."""

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantile of Student's t with 1, 2, … degrees of freedom."""

Z975 = 1.959964
"""That of the normal distribution."""

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
T = TypeVar("T")


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return float(np.mean(values))


def interquartile_mean(values: Sequence[float] | Array) -> float:
    """Mean of the middle half: a quarter of the values (rounded down) is left out at each end.

    Args:
        values: [N], at least one.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(ours: Sequence[float] | Array, theirs: Sequence[float] | Array) -> float:
    """How likely a run of ours is better than one of theirs, over all pairs; a tie counts one half.

    Args:
        ours: [N] scores.
        theirs: [M] scores.
    """
    difference = np.asarray(ours)[:, None] - np.asarray(theirs)[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def draws(*sizes: int, resamples: int = RESAMPLES) -> list[NDArray[np.int64]]:
    """Rows of each group of runs, drawn with replacement: [resamples, size] each, the same in every call."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, size, (resamples, size)) for size in sizes]


def replicates(statistic: Callable[..., float], *groups: Sequence[T], resamples: int = RESAMPLES) -> Array:
    """The statistic of groups of runs drawn with replacement, each group from itself.

    Args:
        statistic: called with as many lists of runs as there are groups; their order must not matter.
        groups: runs of each group.
        resamples: number of replicates.

    Returns:
        [resamples], the same in every call.
    """
    drawn = draws(*map(len, groups), resamples=resamples)
    known: dict[tuple[tuple[int, ...], ...], float] = {}  # of five runs there are only 126 draws
    result = np.empty(resamples)
    for i in range(resamples):
        key = tuple(tuple(sorted(rows[i].tolist())) for rows in drawn)
        if key not in known:
            known[key] = statistic(*([group[j] for j in rows] for group, rows in zip(groups, key, strict=True)))
        result[i] = known[key]
    return result


def interval(statistic: Callable[..., float], *groups: Sequence[T], resamples: int = RESAMPLES) -> Interval:
    """The statistic of groups of runs with the percentile interval of its bootstrap replicates.

    Args:
        statistic: of as many lists of runs as there are groups.
        groups: runs of each group.
        resamples: number of replicates.

    Returns:
        The estimate of the runs as they are, and the ends of its 95 % interval: NaN where no group has two runs.
    """
    estimate = statistic(*(list(group) for group in groups))
    if all(len(group) < 2 for group in groups):
        return estimate, math.nan, math.nan
    return (estimate, *ends(replicates(statistic, *groups, resamples=resamples)))


def quantile_of_t(freedom: int) -> float:
    """97.5 % quantile of Student's t with at least one degree of freedom, to 1e-3 (the Cornish-Fisher expansion)."""
    if freedom <= len(T975):
        return T975[freedom - 1]
    z = Z975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def pooled_deviation(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation of runs around the mean of their group, one for all groups, and its degrees of freedom.

    Args:
        groups: scores of each group; without a group of two the deviation is NaN.
    """
    rows = [np.asarray(group, dtype=np.float64) for group in groups]
    freedom = sum(len(row) - 1 for row in rows)
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in rows)
    return math.sqrt(squares / freedom) if freedom else math.nan, freedom


def further_run(values: Sequence[float], deviation: float, freedom: int) -> Interval:
    """Mean of some runs' scores, and the range in which another seed's lies with 95 % (prediction interval, normal).

    Args:
        values: [N] scores.
        deviation: standard deviation of such scores; NaN where it is not known, and so are the ends.
        freedom: degrees of freedom of that estimate.
    """
    estimate = mean(values)
    half = quantile_of_t(freedom) * deviation * math.sqrt(1 + 1 / len(values)) if freedom else math.nan
    return estimate, estimate - half, estimate + half


def ends(values: Array) -> tuple[float, float]:
    """Ends of the central 95 % of some replicates, which may be infinite."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)
