"""Rendering of progress: the live display for a terminal, a line for a log file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from sppo_lit.utils.console import duration

PHASES = {
    "sampling": "sampling responses",
    "verifying": "checking answers",
    "values": "estimating values",
    "updating": "updating the weights",
    "evaluating": "evaluating",
}
# Column of the last line: metric, label, format.
FACTS = (
    ("rollout/accuracy", "accuracy", "{:.1%}"),
    ("rollout/reward", "reward", "{:.3f}"),
    ("rollout/response_length", "length", "{:.0f}"),
    ("rollout/truncation_rate", "truncated", "{:.1%}"),
    ("policy/approx_kl", "KL", "{:.1e}"),
    ("policy/entropy", "entropy", "{:.2f}"),
    ("critic/value_mean", "V", "{:.2f}"),
)


@dataclass
class View:
    """State of the display; progress is in iterations or in the used share of a budget."""

    iteration: int = 0
    iterations: int | None = None
    share: float | None = None
    elapsed: float = 0.0
    remaining: float | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    accuracies: Sequence[float] = ()
    held_out: Sequence[float] = ()


def picture(view: View) -> RenderableType:
    """The display, three or four lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=21)
    grid.add_column(no_wrap=True, justify="right", min_width=7)
    grid.add_column(min_width=4, max_width=28)  # the bar is what gives way on a narrow screen
    grid.add_column(no_wrap=True)
    if view.iterations is not None or view.share is not None:
        done = view.share if view.share is not None else view.iteration / max(view.iterations or 1, 1)
        left = "estimating time left" if view.remaining is None else f"{duration(view.remaining)} left"
        left = "done" if done >= 1 and not view.phase else left
        grid.add_row(
            Text("iteration", "bold"),
            Text(f"{view.iteration}/{view.iterations}" if view.iterations is not None else f"{view.iteration}"),
            Bar(1.0, done),
            Text.assemble((f"{duration(view.elapsed)} elapsed · ", "dim"), left),
        )
    if view.phase:
        speed = view.facts.get("tokens_per_second")
        grid.add_row(
            Text(PHASES.get(view.phase, view.phase), "cyan"),
            Text(f"{view.done}/{view.total}" if view.total else ""),
            Bar(max(view.total, 1), view.done, complete_style="cyan", finished_style="cyan"),
            Text(f"{speed:,.0f} tokens/s" if speed else "", "dim"),
        )
    lines: list[RenderableType] = [grid]
    if facts := logged_facts(view.metrics):
        shown = [Text.assemble((f"{label} ", "dim"), (value, "bold"), no_wrap=True) for label, value in facts]
        lines.append(Columns(shown, padding=(0, 3)))
    curve = sparkline(view.accuracies) if len(view.accuracies) > 1 else ""
    if curve or view.held_out:
        trend = Text.assemble(("training accuracy ", "dim"), (curve, "green"), "   ") if curve else Text()
        if view.held_out:
            trend.append("held-out ", "dim").append(" → ".join(f"{x:.1%}" for x in ends(view.held_out)), "bold")
        lines.append(trend)
    return Group(*lines)


def plain(view: View, seconds: float) -> str:
    """One line for a log file about the iteration that just ended, which took `seconds`."""
    total = f"/{view.iterations}" if view.iterations else ""
    budget = [f"{view.share:.0%} of the budget"] if view.share is not None else []
    parts = [
        f"iteration {view.iteration}{total}",
        *budget,
        *(f"{label} {value}" for label, value in logged_facts(view.metrics)),
    ]
    parts.append(duration(seconds))
    if view.remaining:
        parts.append(f"{duration(view.remaining)} left")
    return " · ".join(parts)


def logged_facts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Label and text of the metrics in `FACTS` that were logged."""
    if "rollout/accuracy" not in metrics and "policy/loss" in metrics:  # supervised training
        return [("loss", f"{metrics['policy/loss']:.4f}")]
    shown = [(label, form.format(metrics[name])) for name, label, form in FACTS if name in metrics]
    if metrics.get("rollout/reward") == metrics.get("rollout/accuracy"):
        shown = [fact for fact in shown if fact[0] != "reward"]  # no shaping
    return shown


def ends(values: Sequence[float]) -> list[float]:
    """The first and the last of `values`."""
    return [values[0], values[-1]] if len(values) > 1 else list(values)


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """A curve in one line of text, between the least and the greatest value; longer series are averaged to `width`."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return ""
    size = max(1, math.ceil(len(finite) / width))
    means = [sum(finite[i : i + size]) / len(finite[i : i + size]) for i in range(0, len(finite), size)]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (m - low) / (high - low)) if high > low else 3] for m in means)
