"""Comparing the algorithms of a study over seeds: scores, costs to fixed scores, speed-ups, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sppo_lit.study.figures import efficiency
from sppo_lit.study.figures.efficiency import Curve, curve, first_reaching, mean_curve
from sppo_lit.study.runs import Run, grouped
from sppo_lit.study.statistics import (
    Array,
    Interval,
    draws,
    ends,
    further_run,
    interquartile_mean,
    interval,
    mean,
    pooled_deviation,
    probability_of_improvement,
)

COSTS = ("seconds", "sequences", "tokens")
SHARES = (0.5, 0.8, 1.0)
"""Shares of the baseline's gain at which a fixed score lies."""

FACTORS = (1, 3, 10)
"""How many times what it costs here sampling is reckoned to cost."""

PHASES = {
    "sampling": ("rollout",),
    "critic": ("select", "values", "critic"),
    "learning": ("update",),
    "verifying": ("verify",),
}
"""Part of a run → phases of its log (`time/<phase>`)."""


def baseline_of(runs: Sequence[Run], baseline: str | None) -> str:
    """Label of the baseline, `efficiency.baseline_of`, or else the first of all."""
    groups = grouped(runs)
    return efficiency.baseline_of(groups, baseline) or next(iter(groups))


def scores(runs: Sequence[Run], baseline: str) -> dict[str, dict[str, Any]]:
    """Interquartile means over seeds, and how likely a run is better than one of the baseline.

    Args:
        runs: runs with evaluations and a clock.
        baseline: label of the baseline.

    Returns:
        By label: seeds; final, best, and mean score over the training time, each the interquartile mean with its
        interval; another_seed, mean and range in which 95 % of further runs end, with one standard deviation for all
        cells; and compared with the baseline (None of itself) difference, by how much the mean final score of the seeds
        that both have is above its own, with the interval of seeds drawn together; and improvement, the probability
        that a run's final score is above one of its.
    """
    groups = grouped(runs)
    ended = {label: {run.seed: float(curve(run, "seconds")[1][-1]) for run in group} for label, group in groups.items()}
    final = {label: [float(curve(run, "seconds")[1][-1]) for run in group] for label, group in groups.items()}
    scatter = pooled_deviation(final.values())  # of a few seeds alone it may be anything, even 0
    rows: dict[str, dict[str, Any]] = {}
    for label, group in groups.items():
        curves = [curve(run, "seconds") for run in group]
        rows[label] = {
            "seeds": len(group),
            "final": interval(interquartile_mean, final[label]),
            "another_seed": clipped(further_run(final[label], *scatter)),
            "best": interval(interquartile_mean, [float(y.max()) for _, y in curves]),
            "over_training": interval(interquartile_mean, [over_training(c) for c in curves]),
            "difference": None if label == baseline else paired(ended[label], ended[baseline]),
            "improvement": None
            if label == baseline
            else interval(probability_of_improvement, final[label], final[baseline]),
        }
    return rows


def clipped(interval: Interval) -> Interval:
    """An interval of a score, within 0 and 1; NaN stays."""
    estimate, low, high = (float(np.clip(value, 0.0, 1.0)) for value in interval)
    return estimate, low, high


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Mean difference of two cells' scores, by seed, over the seeds that both have; None without any."""
    differences = [score - theirs[seed] for seed, score in ours.items() if seed in theirs]
    return interval(mean, differences) if differences else None


def over_training(c: Curve) -> float:
    """Mean score over the cost, straight lines between evaluations; the only score where there is no cost."""
    x, y = c
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0])) if x[-1] > x[0] else float(y[0])


def cost_to(c: Curve, target: float) -> float:
    """Cost at which a run first reaches a score; infinite if it does not within its budget."""
    reached = first_reaching(c[0], c[1], target)
    return math.inf if reached is None else reached


def median(values: Sequence[float]) -> float:
    """Median of costs that may be infinite: the mean of the middle two, infinite where one of them is."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def costs_to_scores(runs: Sequence[Run], baseline: str) -> dict[str, dict[str, Any]]:
    """Costs to fixed scores: half, 80 % and all of what the baseline's mean curve gains.

    A run that does not get there within its budget is censored: its cost is unknown, but larger than that of all that
    do, so that the median over seeds is known where fewer than half of them are.

    Args:
        runs: runs with evaluations and a clock.
        baseline: label of the baseline.

    Returns:
        By "<cost> to <score>": by label the median over seeds with its interval (infinite: not within the budget), and
        by "reached" those runs that got there of all.
    """
    groups = grouped(runs)
    table: dict[str, dict[str, Any]] = {}
    for cost in COSTS:
        curves = {label: [curve(run, cost) for run in group] for label, group in groups.items()}
        mean = mean_curve(curves[baseline])[1]
        for share in SHARES:
            target = float(mean[0] + share * (mean.max() - mean[0]))
            for label, group in curves.items():
                needed = [cost_to(c, target) for c in group]
                row = table.setdefault(f"{cost} to {target:.1%}", {})
                row[label] = interval(median, needed)
                row[f"{label} reached"] = f"{sum(map(math.isfinite, needed))} of {len(needed)}"
    return table


def speedups(curves: Mapping[str, Sequence[Curve]], baseline: str) -> dict[str, dict[str, Any]]:
    """How many times less than the baseline each label's mean curve needs to the best score of the baseline's.

    Args:
        curves: by label, one of each seed.
        baseline: label of the baseline.

    Returns:
        By label but the baseline: speedup with its interval, 0 where the baseline's best is not reached within the
        budget, and reached, the share of bootstrap replicates in which it is.
    """
    grid, theirs = _on_grid(curves[baseline])
    result: dict[str, dict[str, Any]] = {}
    for label, group in curves.items():
        if label == baseline:
            continue
        own_grid, ours = _on_grid(group)
        [estimate] = _speedup(own_grid, ours.mean(axis=0)[None], grid, theirs.mean(axis=0)[None])
        if len(ours) < 2 and len(theirs) < 2:
            result[label] = {"speedup": (float(estimate), math.nan, math.nan), "reached": float(estimate > 0)}
            continue
        rows, their_rows = draws(len(ours), len(theirs))
        drawn = _speedup(own_grid, ours[rows].mean(axis=1), grid, theirs[their_rows].mean(axis=1))
        result[label] = {"speedup": (float(estimate), *ends(drawn)), "reached": float((drawn > 0).mean())}
    return result


def _on_grid(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """Grid [P] where every seed has data, and the seeds' scores on it [S, P]."""
    grid = mean_curve(curves)[0]
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])


def _speedup(grid: Array, means: Array, their_grid: Array, theirs: Array) -> Array:
    """[R] ratios of the costs at which mean curves [R, P] of the baseline and ours reach the baseline's best."""
    targets = theirs.max(axis=1)
    own, needed = _reaching(their_grid, theirs, targets), _reaching(grid, means, targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = own / needed  # 0 where never: needed is infinite
    return np.where(np.isnan(ratio), 1.0, ratio)  # 0 / 0: neither needs anything


def _reaching(grid: Array, means: Array, targets: Array) -> Array:
    """[R] costs at which curves [R, P] first reach their targets [R], infinite where never; see `first_reaching`."""
    reached = means >= targets[:, None] - 1e-9
    rows, at = np.arange(len(means)), reached.argmax(axis=1)
    before = np.maximum(at - 1, 0)
    low, high = means[rows, before], means[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high > low, (targets - low) / (high - low), 1.0).clip(0.0, 1.0)
    costs = grid[before] + part * (grid[at] - grid[before])
    return np.where(reached.any(axis=1), costs, np.inf)


def phase_shares(runs: Sequence[Run]) -> dict[str, dict[str, float | None]]:
    """Share of the training time that goes into each part, mean over seeds.

    Args:
        runs: runs; in logs without the critic's own phase, learning includes it (its share is then None).

    Returns:
        By label: share of each part in `PHASES`, and other.
    """
    result: dict[str, dict[str, float | None]] = {}
    for label, group in grouped(runs).items():
        spent = {part: float(np.mean([_seconds(run, phases) for run in group])) for part, phases in PHASES.items()}
        total = float(np.mean([_seconds(run, ("iteration",)) for run in group]))
        if not total:
            continue
        shares: dict[str, float | None] = {part: seconds / total for part, seconds in spent.items()}
        shares["other"] = 1 - sum(spent.values()) / total
        if any("time/values" in run.series and "time/critic" not in run.series and shares["critic"] for run in group):
            shares["critic"] = None
            shares["learning"] = (spent["learning"] + spent["critic"]) / total
        result[label] = shares
    return result


def _seconds(run: Run, phases: Sequence[str]) -> float:
    return sum(sum(run.series.get(f"time/{phase}", ([], []))[1]) for phase in phases)


def retimed(run: Run, factor: float) -> Curve:
    """Score of every evaluation against what the training time until then would be if sampling took longer.

    Args:
        run: run with a clock and the seconds of its phases.
        factor: how many times longer each iteration's sampling takes.
    """
    iterations, seconds = run.series.get("time/rollout", ([], []))
    added = dict(zip(iterations, np.cumsum(seconds) * (factor - 1), strict=True))
    used = {0.0: 0.0, **dict(zip(*run.series["clock/seconds"], strict=True))}
    values = dict(zip(*run.series["val/accuracy"], strict=True))
    points = [(used[i] + float(added.get(i, 0.0)), score) for i, score in values.items() if i in used]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def sampling_costs(runs: Sequence[Run], baseline: str, factors: Sequence[float] = FACTORS) -> dict[str, dict[str, Any]]:
    """What the comparison becomes where sampling takes longer than here, as in large models.

    Args:
        runs: runs with evaluations, a clock and the seconds of their phases.
        baseline: label of the baseline.
        factors: how many times longer sampling takes.

    Returns:
        By "sampling × <factor>": by label the mean score at the time at which the first label's data end, with its
        interval, and by "<label> speedup" that over the baseline with its interval.
    """
    groups = grouped(runs)
    table: dict[str, dict[str, Any]] = {}
    for factor in factors:
        curves = {label: [retimed(run, factor) for run in group] for label, group in groups.items()}
        end = min(float(x[-1]) for group in curves.values() for x, _ in group)
        gains = speedups(curves, baseline)
        row: dict[str, Any] = {"at_seconds": end}
        for label, group in curves.items():
            at_end = [float(np.interp(end, x, y)) for x, y in group]
            row[label] = interval(mean, at_end)
            if label in gains:
                row[f"{label} speedup"] = gains[label]["speedup"]
        table[f"sampling × {factor:g}"] = row
    return table
