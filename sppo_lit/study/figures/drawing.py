"""What all figures share: style, and a PNG and an SVG of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.utils.plotting import STYLE

FIGURE: Any = {
    **STYLE,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sppo-lit",
}


@contextmanager
def saved_figure(out: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure to draw on; at the end of the block it is written.

    Args:
        out: `<stem>.png` and `<stem>.svg` are written beside each other, whatever its suffix.
        width: inches.
        height: inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib: pip install 'sppo-lit[plots]'") from None
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out.with_suffix(".png"), dpi=150)
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})
