"""Variance of the policy gradient under each baseline, beside what theory says of it (`study.gradients`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import saved_figure
from sppo_lit.study.gradients import MINIBATCH, measure, read
from sppo_lit.utils.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE

Rows = Mapping[str, Mapping[str, Any]]


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: variance of each baseline, of wrong critics against theory, by horizon, and cosines.

    Args:
        sources: the folder of one measurement.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Numbers of `gradients.measure`.

    Raises:
        InputError: no measurement, or matplotlib is not installed.
    """
    if len(sources) != 1:
        raise InputError(f"gradient_variance: {len(sources)} sources given; name the folder of one measurement")
    numbers = measure(read(sources[0]))
    rows = numbers["baselines"]
    with saved_figure(out, 15.5, 0.8 + 0.36 * len(rows)) as figure:
        variance, agreement, horizon, similar = figure.subplots(1, 4, width_ratios=(1.2, 1, 1, 0.9))
        for axis in (variance, similar):
            axis.set_ylim(len(rows) - 0.5, -0.5)
        _variances(variance, rows)
        _cosines(similar, rows)
        _agreement(agreement, {**numbers["critics"], **{n: r for n, r in rows.items() if n.startswith("V of")}})
        _horizons(horizon, list(rows), numbers["horizons"])
    return numbers


def _variances(axis: Any, rows: Rows) -> None:
    """Variance of each baseline, a row each, and what theory expects."""
    for y, (name, row) in enumerate(rows.items()):
        estimate, low, high = row["variance"]
        axis.plot([low, high], [y, y], color=BLUE, linewidth=2, label="measured" if not y else None)
        axis.plot(estimate, y, "o", color=BLUE, markersize=4)
        if row["theory"] is not None:
            axis.plot(row["theory"][0], y, "x", color=ORANGE, label="theory" if not y else None)
        if row["scale"] is None and name.startswith(("leave", "mixed")):
            label = "measured, alone" if name.endswith("N = 2") else None
            axis.plot(row["alone"][0], y, "|", color=BLUE, markersize=9, label=label)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(title="variance at equal sequences", xlabel="in units of that with the right baseline p")
    axis.legend(loc="best")
    known = [x for r in rows.values() if r["scale"] is None for x in (*r["variance"], *(r["theory"] or ()))]
    axis.set_xlim(0, 1.1 * max(filter(math.isfinite, known)))  # an interval that says nothing may leave the axis


def _cosines(axis: Any, rows: Rows) -> None:
    """Cosine of a minibatch's gradient to the mean, a row for each baseline."""
    for y, row in enumerate(rows.values()):
        estimate, low, high = row["cosine"]
        axis.plot([low, high], [y, y], color=GREEN, linewidth=2)
        axis.plot(estimate, y, "o", color=GREEN, markersize=4)
    axis.set_yticks(range(len(rows)), [])
    axis.set(title=f"cosine, {MINIBATCH} sequences", xlabel="to the mean of a large sample")


def _agreement(axis: Any, points: Rows) -> None:
    """Variance of critics that are wrong against what theory expects of it."""
    for name, row in points.items():
        color = PURPLE if name.startswith("V of") else ORANGE if "noise" in name else BLUE
        x, (y, low, high) = row["theory"][0], row["variance"]
        axis.plot([x, x], [low, high], color=color, linewidth=1.5)
        axis.plot(x, y, "o", color=color, markersize=4)
    line = [1.0, max(row["theory"][0] for row in points.values()) * 1.05]
    axis.plot(line, line, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(title="a critic that is wrong", xlabel="theory: 1 + E[(V − p)²] / E[p(1 − p)]", ylabel="measured")


def _horizons(axis: Any, names: Sequence[str], horizons: Rows) -> None:
    """Variance of some baselines by length of the responses."""
    lengths = [row["tokens"] for row in horizons.values()]
    shown = [n for n in names if n.startswith(("no ", "leave-one-out, N = 2", "leave-one-out, N = 8", "V"))]
    for name, color in zip(shown, (GREY, ORANGE, GREEN, BLUE, PURPLE), strict=False):
        entries = [row[name] for row in horizons.values()]
        axis.plot(lengths, [e[0] for e in entries], "o-", color=color, markersize=4, label=name)
        for x, (_, low, high) in zip(lengths, entries, strict=True):
            axis.plot([x, x], [low, high], color=color, linewidth=1)
    axis.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(title="by horizon", xlabel="tokens of a response", ylabel="variance")
    axis.legend(loc="best", fontsize=7)
