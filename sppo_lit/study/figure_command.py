"""``sppo figure NAME SOURCES``: draw one figure and print its numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sppo_lit.errors import InputError
from sppo_lit.study.figures.specs import FIGURES
from sppo_lit.study.tables import TextTable, tables
from sppo_lit.utils.command import CommandParser


def figure(arguments: Sequence[str]) -> int:
    """The command.

    Raises:
        InputError: an unknown figure or flag, or sources that it cannot be drawn from.
    """
    listing = "\n".join(f"  {name:<16} {entry.about} (from {entry.reads})" for name, entry in FIGURES.items())
    parser = CommandParser(
        prog="sppo figure",
        description=f"Draw a figure as PNG and SVG and print its numbers. Figures:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("sources", metavar="SOURCE", nargs="*", type=Path, help="run folders, a study, or evaluations")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG to write; default: <NAME>.png")
    options = parser.parse_args(list(arguments))
    if options.name not in FIGURES:
        raise InputError(f"figure {options.name} is unknown; choose one of {', '.join(FIGURES)}")
    chosen = FIGURES[options.name]
    if chosen.reads != "nothing" and not options.sources:
        raise InputError(f"figure {options.name}: no sources given; it reads {chosen.reads}")
    out = options.out or Path(f"{options.name}.png")
    numbers = chosen.draw(options.sources, out)
    console = Console(highlight=False)
    for found in tables(numbers):
        console.print(on_terminal(found))
    console.print(f"figure: {out.with_suffix('.png')} and {out.with_suffix('.svg')}", markup=False, soft_wrap=True)
    return 0


def on_terminal(found: TextTable) -> Table:
    """A table for rich."""
    shown = Table(
        title=Text(found.title) if found.title else None, title_justify="left", show_header=any(found.columns)
    )
    for i, name in enumerate(found.columns):
        shown.add_column(Text(name), justify="right" if i else "left")
    for row in found.rows:
        shown.add_row(*map(Text, row))
    return shown
