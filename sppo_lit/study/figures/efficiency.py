"""Efficiency: held-out accuracy against training time and sampled tokens (paper, figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.plan import read_study_json
from sppo_lit.study.runs import Run, find_runs, grouped, styles
from sppo_lit.utils.plotting import GREY

SCORE = "val/accuracy"
POINTS = 201
ABLATION = ("sppo", "ppo_bce", "ppo")
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantile of Student's t with 1, 2, … degrees of freedom; for more, the normal one (1.96) is close."""

UNITS = {"seconds": ((1, "s"), (60, "min"), (3600, "h")), "tokens": ((1, ""), (1e3, "thousand"), (1e6, "million"))}

Curve = tuple[np.ndarray, np.ndarray]
"""Cost so far (increasing) and score at each evaluation, [N] each."""


def curve(run: Run, cost: str) -> Curve:
    """Score of every evaluation of a run against the cost of training until then; before training that is 0.

    Args:
        run: the run.
        cost: "seconds" (of training), "tokens" or "sequences" (sampled).
    """
    used = {0.0: 0.0, **dict(zip(*run.series.get(f"clock/{cost}", ([], [])), strict=True))}
    scores = dict(zip(*run.series.get(SCORE, ([], [])), strict=True))
    points = [(used[i], score) for i, score in scores.items() if i in used]
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def mean_curve(curves: Sequence[Curve], points: int = POINTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds where every seed has data, linearly interpolated between evaluations.

    Args:
        curves: one curve for each seed.
        points: number of points of the common grid.

    Returns:
        grid, mean, and half width of the 95 % interval of the mean (Student's t; NaN for one seed), [points] each.
    """
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), points)
    scores = np.stack([np.interp(grid, x, y) for x, y in curves])
    n = len(curves)
    if n == 1:
        return grid, scores[0], np.full(points, np.nan)
    t = T975[n - 2] if n - 2 < len(T975) else 1.96
    return grid, scores.mean(axis=0), t * scores.std(axis=0, ddof=1) / math.sqrt(n)


def first_reaching(grid: np.ndarray, mean: np.ndarray, target: float) -> float | None:
    """Cost at which a mean curve first reaches the target; None if it never does.

    Args:
        grid: [N] costs, increasing.
        mean: [N] scores.
        target: score to reach.
    """
    reached = np.flatnonzero(mean >= target - 1e-9)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0 or mean[i] <= target:
        return float(grid[i])
    return float(np.interp(target, mean[i - 1 : i + 1], grid[i - 1 : i + 1]))


def measure(runs: Sequence[Run], baseline: str | None = None) -> dict[str, Any]:
    """Compare the scores and costs of runs.

    Args:
        runs: runs with evaluations and a clock.
        baseline: label that speed-ups refer to; None means the first GRPO.

    Returns:
        baseline; target, its best mean score; cells, by label: seeds; start, best (over the evaluations of a seed) and
        final score as (mean, standard deviation over seeds); iterations, sequences, tokens, seconds (means over
        seeds); sequences_to_target and seconds_to_target, where the mean curve first reaches the baseline's best mean
        score (None: never); and fewer_sequences and faster, how many times fewer and faster that is than the
        baseline's own.
    """
    groups = grouped(runs)
    if baseline is None or baseline not in groups:
        baseline = next((label for label, group in groups.items() if group[0].algorithm == "grpo"), None)
    reach: dict[str, dict[str, float | None]] = {}
    target = math.inf
    for cost in ("sequences", "seconds"):
        means = {label: mean_curve([curve(run, cost) for run in group])[:2] for label, group in groups.items()}
        target = float(means[baseline][1].max()) if baseline else math.inf
        reach[cost] = {label: first_reaching(*mean, target) for label, mean in means.items()}
    rows = {}
    for label, group in groups.items():
        scores = [curve(run, "seconds")[1] for run in group]
        row: dict[str, Any] = {
            "seeds": len(group),
            "start": _spread([float(s[0]) for s in scores]),
            "best": _spread([float(s.max()) for s in scores]),
            "final": _spread([float(s[-1]) for s in scores]),
            "iterations": float(np.mean([run.series["clock/seconds"][0][-1] for run in group])),
        }
        for cost in ("sequences", "tokens", "seconds"):
            row[cost] = float(np.mean([run.series[f"clock/{cost}"][1][-1] for run in group]))
        for cost, ratio in (("sequences", "fewer_sequences"), ("seconds", "faster")):
            needed, own = reach[cost][label], reach[cost].get(baseline or "")
            row[f"{cost}_to_target"] = needed
            row[ratio] = own / needed if own and needed else None
        rows[label] = row
    return {"baseline": baseline, "target": target if baseline else None, "cells": rows}  # that over seconds


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: mean and 95 % band over seeds, one line for each algorithm.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Numbers of `measure`.

    Raises:
        InputError: no run has evaluations and a clock, or matplotlib is not installed.
    """
    runs = comparable(find_runs(sources))
    return _draw(runs, out, read_study_json(sources[0]).get("baseline"))


def draw_ablation(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure for Sequence-Level PPO, PPO and PPO+BCE only: the effect of the token-level critic and its loss.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Numbers of `measure`, with PPO as the baseline.

    Raises:
        InputError: runs of fewer than two of these algorithms, or matplotlib is not installed.
    """
    runs = [run for run in comparable(find_runs(sources)) if run.algorithm in ABLATION]
    if len({run.algorithm for run in runs}) < 2:
        raise InputError("ablation: runs of at least two of sppo, ppo and ppo_bce are needed")
    return _draw(runs, out, next((run.label for run in runs if run.algorithm == "ppo"), None))


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Select the runs with a clock and at least one evaluation after an iteration.

    Raises:
        InputError: there is none.
    """
    selected = [run for run in runs if "clock/seconds" in run.series and len(curve(run, "seconds")[0]) > 1]
    if not selected:
        raise InputError("efficiency: no run was evaluated after an iteration; give data.val and clock.evaluations")
    return selected


def _draw(runs: list[Run], out: Path, baseline: str | None) -> dict[str, Any]:
    numbers = measure(runs, baseline)
    with saved_figure(out, 8.6, 3.4) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, cost in zip(axes, ("seconds", "tokens"), strict=True):
            curves = {label: [curve(run, cost) for run in group] for label, group in grouped(runs).items()}
            scale, unit = _scale(max(x[-1] for group in curves.values() for x, _ in group), cost)
            for label, (title, color) in styles(runs).items():
                grid, mean, half = mean_curve(curves[label])
                axis.plot(grid / scale, mean, color=color, label=title)
                if len(curves[label]) > 1:
                    low, high = np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)
                    axis.fill_between(grid / scale, low, high, color=color, alpha=0.13, linewidth=0)
            if numbers["baseline"] is not None:
                best = mean_curve(curves[numbers["baseline"]])[1].max()
                axis.axhline(best, color=GREY, linewidth=0.8, linestyle="--")
            axis.set_xlim(left=0)
            axis.set_xlabel({"seconds": f"training time ({unit})", "tokens": f"sampled tokens ({unit})"}[cost])
        percent_axis(axes[0])
        means = [mean_curve([curve(run, "seconds") for run in group])[1] for group in grouped(runs).values()]
        low, high = min(m.min() for m in means), max(m.max() for m in means)
        axes[0].set_ylim(max(0.0, low - 0.2 * (high - low) - 0.02), min(1.0, high + 0.2 * (high - low) + 0.02))
        axes[0].set_ylabel("held-out accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        if numbers["baseline"] is not None:
            handles.append(axes[0].lines[-1])
            labels.append(f"best of {styles(runs)[numbers['baseline']][0]}")
        figure.legend(handles, labels, loc="outside right center")
    return numbers


def _scale(largest: float, cost: str) -> tuple[float, str]:
    """Size and name of the largest unit in which the largest value is at least 3."""
    units = [(size, name) for size, name in UNITS[cost] if largest >= 3 * size]
    return units[-1] if units else UNITS[cost][0]
