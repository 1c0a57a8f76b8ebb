"""Efficiency: held-out accuracy against training time and sampled tokens (paper, figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.plan import read_study_json
from sppo_lit.study.runs import Run, Style, find_runs, grouped, styles
from sppo_lit.study.statistics import quantile_of_t
from sppo_lit.utils.plotting import GREY

SCORE = "val/accuracy"
POINTS = 201
ABLATION = ("sppo", "ppo_bce", "ppo")
UNITS = {"seconds": ((1, "s"), (60, "min"), (3600, "h")), "tokens": ((1, ""), (1e3, "thousand"), (1e6, "million"))}

FEW = 3
"""So many bands can be told apart in one panel."""

PANELS = 6
"""Most panels beside each other."""

NUMBERS = {
    "target": "%",
    "start": "%",
    "best": "%",
    "final": "%",
    "seconds": "s",
    "seconds_to_target": "s",
    "faster": "×",
    "fewer_sequences": "×",
}
"""Units of `measure`."""

Curve = tuple[np.ndarray, np.ndarray]
"""Cost so far (increasing) and score at each evaluation, [N] each."""

Band = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Costs, mean scores, and half widths of their interval, [points] each."""


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


def mean_curve(curves: Sequence[Curve], points: int = POINTS) -> Band:
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
    return grid, scores.mean(axis=0), quantile_of_t(n - 1) * scores.std(axis=0, ddof=1) / math.sqrt(n)


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


def chosen(baseline: str | None, runs: Sequence[Run], sources: Sequence[Path]) -> str | None:
    """Label of the baseline: the one asked for, else that of the first source's study.

    Raises:
        InputError: no run has the label asked for.
    """
    if baseline is None:
        return read_study_json(sources[0]).get("baseline")
    labels = [*grouped(runs)]
    if baseline not in labels:
        raise InputError(f"--baseline {baseline}: no run of that name; choose one of {', '.join(labels)}")
    return baseline


def baseline_of(groups: Mapping[str, Sequence[Run]], given: str | None) -> str | None:
    """Label of the baseline: the one given if there are runs of it, else the first GRPO; None without either."""
    if given in groups:
        return given
    return next((label for label, group in groups.items() if group[0].algorithm == "grpo"), None)


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
    baseline = baseline_of(groups, baseline)
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


def draw(sources: Sequence[Path], out: Path, baseline: str | None = None) -> dict[str, Any]:
    """Draw the figure: mean over seeds, one line for each algorithm, and a panel of each with its 95 % band.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.
        baseline: label that speed-ups refer to; None means the study's.

    Returns:
        Numbers of `measure`.

    Raises:
        InputError: no run has evaluations and a clock, or that label, or matplotlib is not installed.
    """
    runs = comparable(find_runs(sources))
    return _draw(runs, out, chosen(baseline, runs, sources))


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


def comparable(runs: Sequence[Run], cost: str = "seconds") -> list[Run]:
    """Select the runs with a clock and at least one evaluation after an iteration.

    Args:
        runs: all of them.
        cost: as in `curve`.

    Raises:
        InputError: there is none.
    """
    selected = [run for run in runs if f"clock/{cost}" in run.series and len(curve(run, cost)[0]) > 1]
    if not selected:
        raise InputError("no run was evaluated after an iteration; give data.val and clock.evaluations")
    return selected


def by_study(sources: Sequence[Path], cost: str) -> dict[str, list[Run]]:
    """Title of each study, up to a colon, → its comparable runs, of all sources that have that title.

    Args:
        sources: folders or archives of studies.
        cost: as in `curve`.

    Raises:
        InputError: a study has no run with evaluations and a clock.
    """
    titled: dict[str, list[Path]] = {}
    for source in sources:
        title = str(read_study_json(source).get("title") or source.name).partition(":")[0]
        titled.setdefault(title, []).append(source)
    return {title: comparable(find_runs(own), cost) for title, own in titled.items()}


def _draw(runs: list[Run], out: Path, baseline: str | None) -> dict[str, Any]:
    """Mean curves against time and tokens; bands beside them, or, of more than a few algorithms, in a panel of each."""
    numbers = measure(runs, baseline)
    groups, looks = grouped(runs), styles(runs)
    apart = len(groups) > FEW
    columns = math.ceil(len(groups) / math.ceil(len(groups) / PANELS))
    rows = math.ceil(len(groups) / columns) if apart else 0
    with saved_figure(out, 9.2, 3.4 + 1.9 * rows) as figure:
        whole, *parts = figure.subfigures(
            1 + bool(rows), 1, height_ratios=[3.4, 1.9 * rows][: 1 + bool(rows)], squeeze=False
        )[:, 0]
        axes = whole.subplots(1, 2, sharey=True)
        for axis, cost in zip(axes, ("seconds", "tokens"), strict=True):
            curves = {label: mean_curve([curve(run, cost) for run in group]) for label, group in groups.items()}
            scale, unit = _scale(max(grid[-1] for grid, *_ in curves.values()), cost)
            for label, look in looks.items():
                draw_curve(axis, curves[label], scale, look, band=not apart)
            _baseline(axis, curves, looks, numbers["baseline"])
            axis.set_xlim(left=0)
            axis.set_xlabel({"seconds": "training time", "tokens": "sampled tokens"}[cost] + unit)
        percent_axis(axes[0].yaxis)
        curves = {label: mean_curve([curve(run, "seconds") for run in group]) for label, group in groups.items()}
        view = limits([mean for _, mean, _ in curves.values()])
        axes[0].set(ylim=view, ylabel="held-out accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        whole.legend(handles, labels, loc="outside right center", handlelength=2.6)
        if parts:
            scale, unit = _scale(max(grid[-1] for grid, *_ in curves.values()), "seconds")
            _panels(parts[0], columns, curves, looks, numbers["baseline"], scale, f"training time{unit}", view)
    return numbers


def _panels(
    figure: Any,
    columns: int,
    curves: Mapping[str, Band],
    looks: Mapping[str, Style],
    baseline: str | None,
    scale: float,
    label: str,
    view: tuple[float, float],
) -> None:
    """A panel for each algorithm: its curve with the band, before those of the others in light grey."""
    panels = figure.subplots(math.ceil(len(looks) / columns), columns, sharex=True, sharey=True, squeeze=False)
    for axis, (name, look) in zip(panels.flat, looks.items(), strict=False):
        for other in curves:
            if other != name:
                draw_curve(axis, curves[other], scale, look._replace(color="#D4D4D4", line="-"), width=0.8)
        draw_curve(axis, curves[name], scale, look._replace(line="-"), band=True)
        _baseline(axis, curves, looks, baseline)
        axis.set_title(look.title, color=look.color, fontsize=8.5)
    for axis in panels.flat[len(looks) :]:
        axis.set_axis_off()
    for axis in panels[:, 0]:
        percent_axis(axis.yaxis)
    panels[0, 0].set_xlim(left=0)
    panels[0, 0].set_ylim(view)
    figure.supxlabel(f"{label}; band: 95% interval of the mean over seeds", fontsize=9)


def draw_curve(
    axis: Any, band_curve: Band, scale: float, look: Style, *, band: bool = False, width: float = 1.6
) -> None:
    """Draw a mean curve, with its interval where `band` and there are several seeds; costs are divided by `scale`."""
    grid, mean, half = band_curve
    axis.plot(grid / scale, mean, color=look.color, linestyle=look.line, linewidth=width, label=look.title)
    if band and np.isfinite(half).all():
        low, high = np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)
        axis.fill_between(grid / scale, low, high, color=look.color, alpha=0.18, linewidth=0)


def _baseline(axis: Any, curves: Mapping[str, Band], looks: Mapping[str, Style], baseline: str | None) -> None:
    """A line at the baseline's best mean score."""
    if baseline is not None:
        label = f"{looks[baseline].title}'s best"
        axis.axhline(curves[baseline][1].max(), color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), label=label)


def limits(means: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of the y axis: all mean curves, [N] each, and a fifth more on both sides."""
    low, high = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    room = 0.2 * (high - low) + 0.02
    return max(0.0, low - room), min(1.0, high + room)


def _scale(largest: float, cost: str) -> tuple[float, str]:
    """Size of the largest unit in which the largest value is at least 3, and its name in brackets for a label."""
    size, name = [(size, name) for size, name in UNITS[cost] if size == 1 or largest >= 3 * size][-1]
    return size, f" ({name})" if name else ""
