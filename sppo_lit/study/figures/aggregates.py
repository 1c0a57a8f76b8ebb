"""Aggregates over seeds with bootstrap intervals: scores, probability of improvement, costs to fixed scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.study.figures import comparison
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.figures.efficiency import chosen, comparable, curve
from sppo_lit.study.runs import find_runs, grouped, styles
from sppo_lit.utils.plotting import GREY

NUMBERS = {
    **dict.fromkeys(("final", "another_seed", "difference", "best", "over_training", "improvement"), "%"),
    **dict.fromkeys(("faster_reached", "fewer_sequences_reached"), "%"),
    "faster": "×",
    "fewer_sequences": "×",
    "seconds": "s",
}
"""Units of the numbers."""

COMPARED = ("difference", "improvement")
"""Of `comparison.scores`, what compares with the baseline."""

SCORES = {"final": "final accuracy", "best": "best accuracy", "over_training": "accuracy over training"}


def draw(sources: Sequence[Path], out: Path, baseline: str | None = None) -> dict[str, Any]:
    """Draw interquartile means of three scores, the probability of improvement, and speed-ups, with 95 % intervals.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.
        baseline: label that the others are compared with; None means the study's.

    Returns:
        baseline; interquartile_means, against_the_baseline and costs_to_scores, from `comparison`.

    Raises:
        InputError: no run has evaluations and a clock, or that label, or matplotlib is not installed.
    """
    runs = comparable(find_runs(sources))
    baseline = comparison.baseline_of(runs, chosen(baseline, runs, sources))
    rows = comparison.scores(runs, baseline)
    gains = {
        cost: comparison.speedups(
            {label: [curve(run, cost) for run in group] for label, group in grouped(runs).items()}, baseline
        )
        for cost in ("seconds", "sequences")
    }
    looks = styles(runs)
    labels = list(rows)
    with saved_figure(out, 12.5, 0.9 + 0.34 * len(labels)) as figure:
        axes = figure.subplots(1, 5, sharey=True)
        for axis, (key, title) in zip(axes, SCORES.items(), strict=False):
            _row(axis, [rows[label][key] for label in labels], [looks[label].color for label in labels], percent=True)
            axis.set_title(f"{title} (IQM)")
        _row(axes[3], [rows[label]["improvement"] for label in labels], [looks[label].color for label in labels], True)
        axes[3].axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
        axes[3].set(title=f"P(better than {looks[baseline].title})", xlim=(-0.04, 1.04))
        faster = [gains["seconds"].get(label, {}).get("speedup") for label in labels]
        _row(axes[4], faster, [looks[label].color for label in labels])
        axes[4].axvline(1.0, color=GREY, linewidth=0.8, linestyle="--")
        axes[4].set(title=f"× faster to {looks[baseline].title}'s best")
        axes[0].set_yticks(range(len(labels)), [looks[label].title for label in labels])
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
    compared = {
        label: {
            **{key: rows[label][key] for key in COMPARED},
            "faster": gains["seconds"][label]["speedup"],
            "faster_reached": gains["seconds"][label]["reached"],
            "fewer_sequences": gains["sequences"][label]["speedup"],
            "fewer_sequences_reached": gains["sequences"][label]["reached"],
        }
        for label in labels
        if label != baseline
    }
    return {
        "baseline": baseline,
        "interquartile_means": {
            label: {key: value for key, value in row.items() if key not in COMPARED} for label, row in rows.items()
        },
        "against_the_baseline": compared,
        "costs_to_scores": comparison.costs_to_scores(runs, baseline),
    }


def _row(axis: Any, intervals: Sequence[Any], colors: Sequence[str], percent: bool = False) -> None:
    """One interval for each label, from top to bottom; nothing where there is None."""
    for y, (entry, color) in enumerate(zip(intervals, colors, strict=True)):
        if entry is None:
            continue
        estimate, low, high = entry
        if np.isfinite([low, high]).all():
            axis.barh(y, high - low, left=low, height=0.5, color=color, alpha=0.35, linewidth=0)
        if np.isfinite(estimate):
            axis.plot([estimate, estimate], [y - 0.25, y + 0.25], color=color, linewidth=2)
    if percent:
        percent_axis(axis.xaxis)
    axis.use_sticky_edges = False
    axis.margins(x=0.08)
    axis.tick_params(axis="y", length=0)
