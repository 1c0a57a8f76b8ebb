"""What all figures share: colours, style, and a PNG and an SVG of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError

# Okabe & Ito's colours, told apart also by colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "sppo-lit",
}


@contextmanager
def picture(out: Path, width: float, height: float) -> Iterator[Any]:
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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out.with_suffix(".png"), dpi=150)
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})
