"""The panels of `curves`: each draws one topic on a matplotlib axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sppo_lit.utils.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from sppo_lit.utils.run_log import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND_COLUMNS = 4

VERDICTS = (
    ("correct", GREEN),
    ("wrong", ORANGE),
    ("no_answer", GREY),
    ("truncated", RED),
    ("timeout", PURPLE),
    ("unparsable", SKY),
    ("gold_unparsable", "black"),
)
PHASES = (
    ("select", GREY),
    ("rollout", BLUE),
    ("verify", ORANGE),
    ("values", GREEN),
    ("critic", SKY),
    ("update", PURPLE),
)


def moving_average(values: list[float], window: int) -> list[float]:
    """Mean over up to `window` values around each, narrower at the ends; NaN is left out."""
    means = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - window // 2) : i + window // 2 + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _line(axis: Axes, series: Series, name: str, label: str, color: str, dashed: bool = False) -> bool:
    """One curve: the moving average over the pale raw values."""
    if name not in series:
        return False
    x, y = series[name]
    window = max(1, len(y) // 20) | 1
    if window > 1:
        axis.plot(x, y, color=color, alpha=0.22, linewidth=0.8)
    mark = "o" if len(y) == 1 else None
    axis.plot(
        x, moving_average(y, window), color=color, label=label, linestyle="--" if dashed else "-", marker=mark, ms=4
    )
    return True


def _legend(*axes: Axes) -> None:
    """One legend for an axis and its twin, between title and curves."""
    handles = [h for axis in axes for h in axis.get_legend_handles_labels()[0]]
    labels = [t for axis in axes for t in axis.get_legend_handles_labels()[1]]
    axes[0].legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=LEGEND_COLUMNS,
        borderaxespad=0.2,
        borderpad=0.1,
        handlelength=1.1,
        handletextpad=0.4,
        columnspacing=0.9,
        labelspacing=0.25,
    )


def _twin(axis: Axes, color: str) -> Axes:
    """A second y axis on the right, in the colour of its curve."""
    twin = axis.twinx()
    twin.tick_params(axis="y", colors=color)
    twin.spines[["top", "left"]].set_visible(False)
    twin.grid(False)
    return twin


def _log_scale(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if not math.isfinite(axis.dataLim.minposy):  # nothing positive
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,))
    axis.yaxis.set_major_locator(steps if high / low > 10 else MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_locator(NullLocator())


def _plain(axis: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _percent(axis: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _accuracy(axis: Axes, series: Series) -> None:
    _line(axis, series, "rollout/accuracy", "training", SKY)
    sets = sorted({name.split("/")[1] for name in series if name.startswith("val/") and name.count("/") == 2})
    for i, name in enumerate(sets):
        kind = "greedy" if f"val/{name}/greedy" in series else "avg_at_k"
        if f"val/{name}/{kind}" not in series:
            continue
        x, y = series[f"val/{name}/{kind}"]
        half = series.get(f"val/{name}/{kind}_ci", (x, [0.0] * len(x)))[1]
        color = (RED, GREEN, PURPLE, ORANGE, GREY)[i % 5]
        axis.plot(x, y, color=color, marker="o", ms=3.5, label=name if kind == "greedy" else f"{name} avg@k")
        if len(half) == len(y):
            low = [max(0.0, v - h) for v, h in zip(y, half, strict=True)]
            high = [min(1.0, v + h) for v, h in zip(y, half, strict=True)]
            if len(y) > 1:
                axis.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
            else:
                axis.vlines(x, low, high, color=color)
    _percent(axis)
    _legend(axis)


def _responses(axis: Axes, series: Series) -> None:
    _line(axis, series, "rollout/response_length", "length (tokens)", BLUE)
    twin = _twin(axis, RED)
    if _line(twin, series, "rollout/truncation_rate", "truncated (right)", RED):
        twin.set_ylim(bottom=0, top=max(0.01, twin.get_ylim()[1]))
        _percent(twin)
    else:
        twin.set_axis_off()
    _legend(axis, twin)


def _entropy(axis: Axes, series: Series) -> None:
    _line(axis, series, "policy/entropy", "entropy (nats per token)", BLUE)
    twin = _twin(axis, RED)
    if _line(twin, series, "policy/approx_kl", "KL (right)", RED):
        _plain(twin)
    else:
        twin.set_axis_off()
    _legend(axis, twin)


def _clipping(axis: Axes, series: Series) -> None:
    _line(axis, series, "policy/clip_fraction", "clipped", BLUE)
    _line(axis, series, "policy/dual_clip_fraction", "dual-clipped", PURPLE)
    _percent(axis)
    twin = _twin(axis, ORANGE)
    if _line(twin, series, "policy/ratio_max", "ratio extremes (right)", ORANGE):
        low = {"_low": series.get("policy/ratio_min", ([], []))}
        _line(twin, low, "_low", "_", ORANGE)
        _log_scale(twin)
    else:
        twin.set_axis_off()
    _legend(axis, twin)


def _gradients(axis: Axes, series: Series) -> None:
    _line(axis, series, "policy/grad_norm", "policy", BLUE)
    _line(axis, series, "critic/grad_norm", "critic", RED)
    _log_scale(axis)
    _legend(axis)


def _critic(axis: Axes, series: Series) -> None:
    _line(axis, series, "critic/value_mean", "mean V", BLUE)
    if "critic/value_mean" in series:
        _line(axis, series, "rollout/accuracy", "accuracy", SKY, dashed=True)
    _line(axis, series, "critic/brier", "Brier", RED)
    _line(axis, series, "critic/explained_variance", "explained var.", GREEN)
    low = min((y for y in series.get("critic/explained_variance", ([], []))[1] if math.isfinite(y)), default=0.0)
    axis.set_ylim(max(-1.0, min(0.0, low) - 0.03), 1.0)
    _legend(axis)


def _advantage(axis: Axes, series: Series) -> None:
    _line(axis, series, "advantage/std", "standard deviation", BLUE)
    _line(axis, series, "advantage/mean", "mean", ORANGE)
    axis.axhline(0, color=GREY, linewidth=0.8)
    _legend(axis)


def _loss(axis: Axes, series: Series) -> None:
    _line(axis, series, "policy/loss", "cross-entropy (nats per token)", BLUE)
    _legend(axis)


def _stacked(axis: Axes, series: Series, names: list[tuple[str, str, str]]) -> None:
    """Stacked areas of metrics, given as (metric, label, colour); bars for a single iteration."""
    if not names:
        return
    x = series[names[0][0]][0]
    stacks = [dict(zip(*series[name], strict=True)) for name, _, _ in names]
    values = [[stack.get(i, 0.0) for i in x] for stack in stacks]
    labels, colors = [label for _, label, _ in names], [color for *_, color in names]
    if len(x) == 1:
        for i, (label, color) in enumerate(zip(labels, colors, strict=True)):
            axis.bar(x, values[i], bottom=sum(v[0] for v in values[:i]), label=label, color=color, width=0.2)
    else:
        axis.stackplot(x, values, labels=labels, colors=colors, alpha=0.85, linewidth=0)
    _legend(axis)


def _verdicts(axis: Axes, series: Series) -> None:
    reasons = [(f"rollout/reason/{name}", name.replace("_", " "), color) for name, color in VERDICTS]
    _stacked(axis, series, [r for r in reasons if any(series.get(r[0], ([], []))[1])])
    axis.set_ylim(0, 1)
    _percent(axis)


def _time(axis: Axes, series: Series) -> None:
    _stacked(axis, series, [(f"time/{name}", name, color) for name, color in PHASES if f"time/{name}" in series])
    axis.set_ylabel("seconds")


PANELS: tuple[tuple[str, tuple[str, ...], Callable[[Axes, Series], None]], ...] = (
    ("Accuracy", ("rollout/accuracy", "val/accuracy"), _accuracy),
    ("Responses", ("rollout/response_length", "rollout/truncation_rate"), _responses),
    ("Verdicts", tuple(f"rollout/reason/{name}" for name, _ in VERDICTS), _verdicts),
    ("Entropy and KL", ("policy/entropy", "policy/approx_kl"), _entropy),
    ("Clipping", ("policy/clip_fraction", "policy/ratio_max"), _clipping),
    ("Gradient norms", ("policy/grad_norm", "critic/grad_norm"), _gradients),
    ("Critic", ("critic/value_mean", "critic/brier", "critic/explained_variance"), _critic),
    ("Advantage", ("advantage/std", "advantage/mean"), _advantage),
    ("Time by phase", tuple(f"time/{name}" for name, _ in PHASES), _time),
)
"""Title, metrics of which at least one must be logged, and function, in order."""


def panels_for(series: Series) -> list[tuple[str, Callable[[Axes, Series], None]]]:
    """Title and function of the panels that have something to draw."""
    panels = [(title, draw) for title, names, draw in PANELS if any(name in series for name in names)]
    if "rollout/accuracy" not in series and "policy/loss" in series:  # supervised training
        panels.insert(0, ("Loss", _loss))
    return panels
