"""Success against episodes, a panel for each environment of the control benchmark (paper, figure 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.study.figures.comparison import cost_to, median, over_training
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.figures.efficiency import by_study, curve, draw_curve, mean_curve
from sppo_lit.study.runs import Run, grouped, styles
from sppo_lit.study.statistics import interval, mean

COST = "sequences"
THRESHOLDS = (0.5, 0.9)
COLUMNS = 3
NUMBERS = dict.fromkeys(("start", "final", "over_training"), "%")
NUMBERS |= {f"episodes_to_{threshold:.0%}": "episodes" for threshold in THRESHOLDS}
"""Units of `measure`."""


def measure(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Success of each label of one environment, over seeds.

    Args:
        runs: runs with evaluations and a clock.

    Returns:
        By label: seeds, episodes; start and final success, and its mean over the episodes of training (the area under
        the curve), each a mean with its 95 % bootstrap interval; and the median of the episodes after which 50 and 90 %
        are first reached (infinite: not by more than half of the seeds); curves, episodes and success of every
        evaluation, by seed.
    """
    rows: dict[str, dict[str, Any]] = {}
    for label, group in grouped(runs).items():
        curves = [curve(run, COST) for run in group]
        row: dict[str, Any] = {"seeds": len(group), "episodes": float(np.mean([x[-1] for x, _ in curves]))}
        row["start"] = interval(mean, [float(y[0]) for _, y in curves])
        row["final"] = interval(mean, [float(y[-1]) for _, y in curves])
        row["over_training"] = interval(mean, [over_training(c) for c in curves])
        for threshold in THRESHOLDS:
            row[f"episodes_to_{threshold:.0%}"] = median([cost_to(c, threshold) for c in curves])
        row["curves"] = {
            str(run.seed): [[round(float(v), 4) for v in values] for values in c]
            for run, c in zip(group, curves, strict=True)
        }
        rows[label] = row
    return rows


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: mean over seeds with the 95 % interval, for each algorithm.

    Args:
        sources: folders or archives of studies, a panel for each title; those of a title stand together.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        By title of the panel, the numbers of `measure`.

    Raises:
        InputError: no run has evaluations and a clock, or matplotlib is not installed.
    """
    panels = by_study(sources, COST)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with saved_figure(out, 0.6 + 2.9 * max(columns, 2), 0.9 + 2.3 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axis, (title, runs) in zip(axes.flat, panels.items(), strict=False):
            _panel(axis, runs)
            axis.set_title(title)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        axes[0, 0].set_ylim(-0.02, 1.02)
        for axis in axes[:, 0]:
            percent_axis(axis.yaxis)
            axis.set_ylabel("success, held out")
        looks = styles([run for runs in panels.values() for run in runs])
        lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=max(3, len(looks)))
        figure.supxlabel("episodes; band: 95% interval of the mean over seeds", fontsize=9)
    return {title: measure(runs) for title, runs in panels.items()}


def _panel(axis: Any, runs: Sequence[Run]) -> None:
    groups: Mapping[str, Sequence[Run]] = grouped(runs)
    for label, look in styles(runs).items():
        draw_curve(axis, mean_curve([curve(run, COST) for run in groups[label]]), 1.0, look, band=True)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.locator_params(axis="x", nbins=4)
