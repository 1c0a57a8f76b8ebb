"""The curves of a run as one picture, drawn from its CSV log."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from sppo_lit.callbacks.console import console, run_folder, written_whole
from sppo_lit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = dict[str, tuple[list[float], list[float]]]

# Okabe & Ito's colours, told apart also by colour-blind readers.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#C9B800",
    "#777777",
)


class Curves(Callback):
    """Draws ``<run>/curves.png`` from ``metrics.csv`` when training ends, also by an error or Ctrl-C.

    Needs the extra ``plots``; without it one line says so and nothing else happens.

    Args:
        filename: name of the picture in the run folder.
    """

    def __init__(self, filename: str = "curves.png") -> None:
        self.filename = filename
        self._csv: Path | None = None
        self._picture = Path()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where log and picture lie."""
        folder = run_folder(trainer)
        logger = next((x for x in trainer.loggers if isinstance(x, CSVLogger)), None)
        self._csv = Path(logger.log_dir if logger else folder) / "metrics.csv"
        self._picture = folder / self.filename

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw what there is."""
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or self._csv is None:
            return
        for logger in trainer.loggers:
            logger.save()
        try:
            if self._csv.is_file() and (series := read_metrics(self._csv)):
                draw(series, self._picture, title=self._picture.parent.name)
        except InputError as error:
            console.print(f"no curves: {error}", style="yellow", markup=False)
        except Exception as error:  # a picture is never worth a run
            console.print(f"no curves: {type(error).__name__}: {error}", style="yellow", markup=False)


def read_metrics(path: Path) -> Series:
    """Iterations and values of every metric in a ``metrics.csv``, without gaps, in order.

    Args:
        path: written by Lightning's `CSVLogger`, one row per logged step.

    Returns:
        name → (iterations, values), equally long.
    """
    found: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # Where no step was logged, Lightning counts from 0 and adds the epoch.
            iteration = float(row["epoch"]) + 1 if row.get("epoch") else float(row["step"])
            for name, text in row.items():
                if name not in {"step", "epoch"} and text:
                    found.setdefault(name, {})[iteration] = float(text)
    return {name: tuple(map(list, zip(*sorted(points.items()), strict=True))) for name, points in found.items()}  # type: ignore[misc]


def moving_average(values: list[float], window: int) -> list[float]:
    """Mean over up to `window` values around each, narrower at the ends; NaN is left out."""
    means = []
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        near = [v for v in values[i - reach : i + reach + 1] if math.isfinite(v)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def draw(series: Series, path: Path, title: str = "") -> None:
    """Write the picture; panels without data stay away.

    Args:
        series: of `read_metrics`.
        path: PNG file to write.
        title: name of the run.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing curves needs matplotlib: pip install 'sppo-lit[plots]'") from None
    panels: list[tuple[str, Callable[[Axes, Series], bool]]] = [
        ("Accuracy", _accuracy),
        ("Responses", _responses),
        ("Entropy and KL", _entropy),
        ("Clipping", _clipping),
        ("Gradient norms", _gradients),
        ("Critic", _critic),
        ("Advantage", _advantage),
        ("Time by phase", _time),
    ]
    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "axes.axisbelow": True,
        "axes.edgecolor": "#999999",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(15, 6.4), layout="constrained")
        axes = figure.subplots(2, 4)
        for axis, (name, panel) in zip(axes.flat, panels, strict=True):
            axis.set_title(name)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.02)
            if panel(axis, series):
                axis.set_xlabel("iteration")
            else:
                axis.set_axis_off()
                axis.text(0.5, 0.5, "nothing logged", ha="center", color=GREY, transform=axis.transAxes)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")


def _line(axis: Axes, series: Series, name: str, label: str, color: str, dashed: bool = False) -> bool:
    """One curve: the moving average over the pale raw values where there are many."""
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
    """One legend for an axis and its twin, above the curves."""
    handles = [h for axis in axes for h in axis.get_legend_handles_labels()[0]]
    labels = [t for axis in axes for t in axis.get_legend_handles_labels()[1]]
    if handles:
        # A strip between title and curves, which no curve crosses.
        axes[0].legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 0.995, 1, 0.1),
            ncols=min(len(labels), 3),
            borderaxespad=0,
            handlelength=1.3,
            columnspacing=1.0,
            borderpad=0.2,
            labelspacing=0.25,
        )
        axes[0].title.set_y(1.0)
        axes[0].set_title(axes[0].get_title(loc="left"), pad=10 + 11 * math.ceil(len(labels) / 3))


def _twin(axis: Axes, label: str, color: str) -> Axes:
    twin = axis.twinx()
    twin.set_ylabel(label, color=color)
    twin.tick_params(axis="y", colors=color)
    twin.spines[["top", "left"]].set_visible(False)
    twin.grid(False)
    return twin


def _percent(axis: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _accuracy(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "rollout/accuracy", "training", SKY)
    sets = sorted({name.split("/")[1] for name in series if name.startswith("val/") and name.count("/") == 2})
    for i, name in enumerate(sets):
        kind = "greedy" if f"val/{name}/greedy" in series else "avg_at_k"
        if f"val/{name}/{kind}" not in series:
            continue
        x, y = series[f"val/{name}/{kind}"]
        half = series.get(f"val/{name}/{kind}_ci", (x, [0.0] * len(x)))[1]
        color = (RED, BLUE, GREEN, ORANGE, PURPLE, GREY)[i % 6]
        axis.plot(x, y, color=color, marker="o", ms=3.5, label=f"{name} ({kind.replace('_at_', '@')})")
        if len(half) == len(y):
            low, high = [v - h for v, h in zip(y, half, strict=True)], [v + h for v, h in zip(y, half, strict=True)]
            if len(y) > 1:
                axis.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
            else:
                axis.errorbar(x, y, half, color=color, capsize=3)
        drawn = True
    _percent(axis)
    _legend(axis)
    return drawn


def _responses(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "rollout/response_length", "length", BLUE)
    axis.set_ylabel("tokens", color=BLUE)
    if "rollout/truncation_rate" in series:
        twin = _twin(axis, "truncated", RED)
        _line(twin, series, "rollout/truncation_rate", "truncated", RED)
        twin.set_ylim(bottom=0)
        _percent(twin)
        _legend(axis, twin)
        return True
    _legend(axis)
    return drawn


def _entropy(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "policy/entropy", "entropy", BLUE)
    axis.set_ylabel("entropy (nats per token)", color=BLUE)
    if "policy/approx_kl" in series:
        twin = _twin(axis, "approximate KL (nats)", RED)
        drawn = _line(twin, series, "policy/approx_kl", "KL", RED)
        twin.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        _legend(axis, twin)
    else:
        _legend(axis)
    return drawn


def _clipping(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "policy/clip_fraction", "clipped", BLUE)
    drawn |= _line(axis, series, "policy/dual_clip_fraction", "dual-clipped", PURPLE)
    axis.set_ylabel("share of tokens", color=BLUE)
    _percent(axis)
    if "policy/ratio_max" in series:
        twin = _twin(axis, "ratio (log scale)", ORANGE)
        twin.set_yscale("log")
        _line(twin, series, "policy/ratio_max", "ratio max, min", ORANGE)
        if "policy/ratio_min" in series:
            x, y = series["policy/ratio_min"]
            twin.plot(x, y, color=ORANGE, linewidth=1.0, linestyle="--")
        _legend(axis, twin)
        return True
    _legend(axis)
    return drawn


def _gradients(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "policy/grad_norm", "policy", BLUE)
    drawn |= _line(axis, series, "critic/grad_norm", "critic", RED)
    axis.set_yscale("log")
    _legend(axis)
    return drawn


def _critic(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "critic/value_mean", "mean V", BLUE)
    if drawn:
        _line(axis, series, "rollout/accuracy", "accuracy", SKY, dashed=True)
    drawn |= _line(axis, series, "critic/brier", "Brier", RED)
    drawn |= _line(axis, series, "critic/explained_variance", "explained var.", GREEN)
    low = min((y for y in series.get("critic/explained_variance", ([], []))[1] if math.isfinite(y)), default=0.0)
    axis.set_ylim(max(-1.0, min(0.0, low) - 0.03), 1.0)
    _legend(axis)
    return drawn


def _advantage(axis: Axes, series: Series) -> bool:
    drawn = _line(axis, series, "advantage/std", "standard deviation", BLUE)
    drawn |= _line(axis, series, "advantage/mean", "mean", ORANGE)
    axis.axhline(0, color=GREY, linewidth=0.8)
    _legend(axis)
    return drawn


def _time(axis: Axes, series: Series) -> bool:
    phases = (("rollout", BLUE), ("verify", ORANGE), ("values", GREEN), ("update", PURPLE))
    found = [(name, color) for name, color in phases if f"time/{name}" in series]
    if not found:
        return False
    x = series[f"time/{found[0][0]}"][0]
    stacks = [dict(zip(*series[f"time/{name}"], strict=True)) for name, _ in found]
    values = [[stack.get(i, 0.0) for i in x] for stack in stacks]
    if len(x) == 1:
        axis.bar([name for name, _ in found], [v[0] for v in values], color=[c for _, c in found])
    else:
        axis.stackplot(x, values, labels=[n for n, _ in found], colors=[c for _, c in found], alpha=0.85, linewidth=0)
        _legend(axis)
    axis.set_ylabel("seconds")
    return True
