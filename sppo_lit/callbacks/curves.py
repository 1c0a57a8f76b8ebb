"""A figure with the curves of a run, drawn from its CSV log."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from sppo_lit.callbacks.panels import LEGEND_COLUMNS, panels_for
from sppo_lit.errors import InputError, refuse
from sppo_lit.training.run_folder import run_folder
from sppo_lit.utils.console import console
from sppo_lit.utils.files import is_name, written_whole
from sppo_lit.utils.plotting import STYLE
from sppo_lit.utils.run_log import Series, read_metrics


class Curves(Callback):
    """Draws ``<run>/curves.png`` from ``metrics.csv`` when training ends, also after an error or Ctrl-C.

    Needs the extra ``plots``; without it, only prints one line.

    Args:
        filename: name of the figure in the run folder.

    Raises:
        InputError: it is not the name of a file.
    """

    def __init__(self, filename: str = "curves.png") -> None:
        refuse("curves", filename=(repr(filename), is_name(filename), "the name of one file, without '/'"))
        self.filename = filename
        self._csv: Path | None = None
        self._picture = Path()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the paths of log and figure."""
        folder = run_folder(trainer)
        logger = next((x for x in trainer.loggers if isinstance(x, CSVLogger)), None)
        self._csv = Path(logger.log_dir if logger else folder) / "metrics.csv"
        self._picture = folder / self.filename

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw the iterations so far."""
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or self._csv is None:
            return
        for logger in trainer.loggers:
            logger.save()
        try:
            if self._csv.is_file() and (series := read_metrics(self._csv)):
                draw(series, self._picture, title=" · ".join(self._picture.parts[-3:-1]))
        except InputError as error:
            console.print(f"no curves: {error}", style="yellow", markup=False)
        except Exception as error:  # a failed figure must not end a run
            console.print(f"no curves: {type(error).__name__}: {error}", style="yellow", markup=False)


def draw(series: Series, path: Path, title: str = "") -> None:
    """Write the figure, without panels that have no data.

    Args:
        series: metrics of the run, see `read_metrics`.
        path: PNG file to write.
        title: name of the run.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise InputError("drawing curves needs matplotlib: pip install 'sppo-lit[plots]'") from None
    if not (panels := panels_for(series)):
        return
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 10.5}):
        rows, columns = grid(len(panels))
        figure = Figure(figsize=(0.6 + 3.6 * columns, 0.4 + 3.0 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (name, panel) in zip(axes.flat, panels, strict=False):
            axis.set_title(name)
            axis.spines[["top", "right"]].set_visible(False)
            panel(axis, series)
            axis.set_xlabel("iteration")
            axis.tick_params(labelbottom=True)
        iterations = [i for x, _ in series.values() for i in x]
        edge = 0.02 * (max(iterations) - min(iterations)) or 1
        axes.flat[0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.flat[0].set_xlim(min(iterations) - edge, max(iterations) + edge)
        for row in (axes.flat[: len(panels)][i : i + columns] for i in range(0, len(panels), columns)):
            # Align the titles of a row above its longest legend.
            legends = [axis.get_legend() for axis in row]
            lines = max(math.ceil(len(legend.texts) / LEGEND_COLUMNS) if legend else 0 for legend in legends)
            for axis in row:
                axis.set_title(axis.get_title(loc="left"), pad=8 + 12 * lines)
        figure.suptitle(headline(series, title), x=0.012, ha="left", fontsize=12)
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")


def grid(count: int) -> tuple[int, int]:
    """Rows and columns for `count` panels: one row of up to four, else two or more rows of up to four."""
    rows = math.ceil(count / 4)
    return rows, math.ceil(count / rows)


def headline(series: Series, title: str) -> str:
    """Name of the run with its first and last held-out accuracy."""
    values = series.get("val/accuracy", ([], []))[1]
    accuracy = " → ".join(f"{v:.1%}" for v in ([values[0], values[-1]] if len(values) > 1 else values))
    return " · ".join(part for part in (title, f"held-out accuracy {accuracy}" if accuracy else "") if part)
