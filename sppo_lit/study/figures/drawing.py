"""Style of the figures, and saving them as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.utils.plotting import STYLE

FIGURE_STYLE: Any = {
    **STYLE,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sppo-lit",
}


@contextmanager
def saved_figure(out: Path, width: float, height: float) -> Iterator[Any]:
    """Yield a matplotlib figure to draw on, and save it at the end of the block.

    Args:
        out: path whose suffix is replaced by ``.png`` and ``.svg``; with the suffix ``.pdf`` also a PDF.
        width: inches.
        height: inches.

    Raises:
        InputError: matplotlib is not installed, or the path cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install 'sppo-lit[plots]'") from None
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out.with_suffix(".png"), dpi=150)
            figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})
            if out.suffix == ".pdf":
                figure.savefig(out, metadata={"CreationDate": None})
        except OSError as error:
            raise InputError(f"cannot write the figure {out}: {error.strerror or error}") from error


def percent_axis(axis: Any) -> None:
    """Label a matplotlib axis in percent, for values in [0, 1], with as many decimals as each tick needs."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 4) + 0.0:g}%"))
