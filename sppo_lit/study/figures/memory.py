"""Peak memory of each phase of an iteration (paper, figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import saved_figure
from sppo_lit.study.runs import Run, find_runs, grouped, styles

PHASES = ("rollout", "verify", "values", "update")
PEAK = "peak"
NUMBERS = dict.fromkeys((*PHASES, PEAK), "MiB")
"""Units of `measure`."""


def measure(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Peak memory of each phase: maximum over iterations, mean over seeds.

    Args:
        runs: runs that have logged ``memory/<phase>``.

    Returns:
        Label → phase → MiB, with "peak" for the largest phase; phases that an algorithm does not have are missing.

    Raises:
        InputError: no run has logged its memory.
    """
    result = {}
    for label, group in grouped(runs).items():
        peaks = [
            {phase: max(run.series[f"memory/{phase}"][1]) for phase in PHASES if f"memory/{phase}" in run.series}
            for run in group
        ]
        if any(peaks):
            phases = {p: mean(m[p] for m in peaks if p in m) for p in PHASES if any(p in m for m in peaks)}
            result[label] = {**phases, PEAK: mean(max(m.values()) for m in peaks if m)}
    if not result:
        raise InputError("memory: no run has logged it; it is known on CUDA, and on Linux where the peak can be reset")
    return result


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: bars of every algorithm for each phase and the whole iteration.

    Args:
        sources: run folders, or folders that contain them.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Numbers of `measure`.

    Raises:
        InputError: no run has logged its memory, or matplotlib is not installed.
    """
    runs = find_runs(sources)
    numbers = measure(runs)
    style = styles(runs)
    phases = [p for p in (*PHASES, PEAK) if any(p in row for row in numbers.values())]
    with saved_figure(out, 8.6, 3.2) as figure:
        axis = figure.subplots()
        width = 0.8 / len(numbers)
        for i, (label, row) in enumerate(numbers.items()):
            title, color, _ = style[label]
            places = [j + (i - (len(numbers) - 1) / 2) * width for j, p in enumerate(phases) if p in row]
            axis.bar(places, [row[p] for p in phases if p in row], width * 0.92, color=color, label=title)
        names = [p if p != PEAK else "whole iteration" for p in phases]
        axis.set_xticks(range(len(phases)), names)
        axis.set_ylabel("peak memory (MiB)")
        axis.grid(visible=False, axis="x")
        figure.legend(loc="outside right center")
    return numbers
