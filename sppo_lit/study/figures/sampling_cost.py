"""What the comparison becomes where sampling costs more than here: curves re-timed from the logged phases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.study.figures import comparison
from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.figures.efficiency import chosen, comparable, mean_curve
from sppo_lit.study.runs import find_runs, grouped, styles

NUMBERS = {
    **dict.fromkeys(("sampling", "critic", "learning", "verifying", "other"), "%"),
    "at_seconds": "s",
    "speedup": "×",
}
"""Units of the numbers; those of "sampling × 3" are accuracies."""


def draw(sources: Sequence[Path], out: Path, baseline: str | None = None) -> dict[str, Any]:
    """Draw the mean curves with sampling at 1, 3 and 10 times its cost, and the share of each phase.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.
        baseline: label that speed-ups refer to; None means the study's.

    Returns:
        baseline; shares, `comparison.phase_shares`; costs, `comparison.sampling_costs`.

    Raises:
        InputError: no run has evaluations, a clock and the seconds of its phases, or no run that label, or
            matplotlib is not installed.
    """
    runs = [run for run in comparable(find_runs(sources)) if "time/rollout" in run.series]
    if not runs:
        raise InputError("sampling_cost: no run has the seconds of its phases (time/rollout); give whole run folders")
    baseline = comparison.baseline_of(runs, chosen(baseline, runs, sources))
    with saved_figure(out, 12.5, 3.2) as figure:
        axes = figure.subplots(1, len(comparison.FACTORS), sharey=True)
        for axis, factor in zip(axes, comparison.FACTORS, strict=True):
            for label, (title, color, line) in styles(runs).items():
                grid, mean, _ = mean_curve([comparison.retimed(run, factor) for run in grouped(runs)[label]])
                axis.plot(grid, mean, linestyle=line, color=color, label=title)
            axis.set(title=f"sampling × {factor:g}", xlabel="training time (s, reckoned)", xlim=(0, None))
        percent_axis(axes[0].yaxis)
        axes[0].set_ylabel("held-out accuracy")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return {
        "baseline": baseline,
        "shares": comparison.phase_shares(runs),
        "costs": comparison.sampling_costs(runs, baseline),
    }
