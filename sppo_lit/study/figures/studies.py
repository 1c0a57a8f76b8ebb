"""Held-out accuracy against training time, a panel for each study, e.g. of another protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.study.figures import comparison
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.figures.efficiency import by_study, chosen, curve, draw_curve, limits, mean_curve
from sppo_lit.study.runs import grouped, styles

SEEDS = 3
"""Least number of seeds whose interval is drawn: that of two would cover the figure."""

APART = 0.025
"""Distance of two intervals, as a share of the time axis."""


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: mean over seeds for each algorithm, from `SEEDS` seeds on with the 95 % interval of its end.

    Args:
        sources: folders or archives of studies, a panel for each title; those of a title stand together.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        By title of the panel, `comparison.scores` against the baseline of the study.

    Raises:
        InputError: no run has evaluations and a clock, or matplotlib is not installed.
    """
    panels, means = by_study(sources, "seconds"), []
    with saved_figure(out, 1.6 + 3.3 * len(panels), 3.2) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, runs) in zip(axes, panels.items(), strict=True):
            groups, looks = grouped(runs), styles(runs)
            bands = {label: mean_curve([curve(run, "seconds") for run in groups[label]]) for label in looks}
            end = max(float(grid[-1]) for grid, _, _ in bands.values())
            for i, (label, look) in enumerate(looks.items(), start=1):
                _, mean, half = bands[label]
                draw_curve(axis, bands[label], 1.0, look)
                means.append(mean)
                if len(groups[label]) >= SEEDS:  # along the curves, bands of so many would hide each other
                    beside = end * (1 + APART * i)
                    axis.errorbar(beside, mean[-1], half[-1], color=look.color, fmt="o", markersize=3, capsize=2)
                    means.append(mean[-1] + half[-1] * np.array([-1, 1]))
            axis.set_title(title)
            axis.set_xlim(left=0)
        axes[0].set_ylim(limits(means))
        percent_axis(axes[0].yaxis)
        axes[0].set_ylabel("held-out accuracy")
        lines = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(lines.values(), lines.keys(), loc="outside right center")
        figure.supxlabel(
            f"training time (s); mean over seeds, in the end with its 95% interval where there are {SEEDS} or more",
            fontsize=9,
        )
    baselines = {title: chosen(None, runs, [runs[0].folder]) for title, runs in panels.items()}
    return {
        title: comparison.scores(runs, comparison.baseline_of(runs, baselines[title])) for title, runs in panels.items()
    }
