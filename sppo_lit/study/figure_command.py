"""``sppo figure NAME SOURCES``: draw one figure and print its numbers."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sppo_lit.errors import InputError
from sppo_lit.study.archive import write_archive
from sppo_lit.study.figures.specs import FIGURES
from sppo_lit.study.tables import TextTable, finite, tables
from sppo_lit.utils.command import CommandParser, names
from sppo_lit.utils.console import console

SUFFIXES = (".png", ".svg", ".pdf")


def figure(arguments: Sequence[str]) -> int:
    """Draw a figure as PNG and SVG, print its numbers, and write all of them beside it as JSON.

    Args:
        arguments: command-line arguments after ``sppo figure``.

    Returns:
        Exit code 0.

    Raises:
        InputError: an unknown figure or flag, or sources that it cannot be drawn from.
    """
    listing = "\n".join(f"  {name:<16} {spec.about} (from {spec.reads})" for name, spec in FIGURES.items())
    parser = CommandParser(
        prog="sppo figure",
        description=f"Draw a figure as PNG and SVG and print its numbers. Figures:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("sources", metavar="SOURCE", nargs="*", type=Path, help="run folders, a study, or evaluations")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".png, .svg or .pdf file; default: <NAME>.png")
    parser.add_argument("--only", type=names, metavar="CELL,CELL", help="draw only these cells of studies")
    parser.add_argument("--baseline", metavar="CELL", help="compare with this one instead of the study's own baseline")
    args = parser.parse_args(list(arguments))
    if args.name not in FIGURES:
        raise InputError(f"figure {args.name} is unknown; choose one of {', '.join(FIGURES)}")
    spec = FIGURES[args.name]
    if spec.reads != "nothing" and not args.sources:
        raise InputError(f"figure {args.name}: no sources given; it reads {spec.reads}")
    out = args.out or Path(f"{args.name}.png")
    if out.suffix not in SUFFIXES or out.is_dir():
        raise InputError(f"--out {out}: not the name of a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; give one")
    if args.baseline is not None and not spec.compares:
        comparing = ", ".join(name for name, other in FIGURES.items() if other.compares)
        raise InputError(f"--baseline: figure {args.name} has none; {comparing} have")
    options = (args.baseline,) if spec.compares else ()
    if args.only is not None and spec.reads not in ("runs", "studies", "control studies"):
        raise InputError(f"--only: figure {args.name} reads {spec.reads}, not cells of studies; leave it out")
    file = out.with_suffix(".json")
    if file.resolve() in {source.resolve() for source in args.sources}:
        raise InputError(f"--out {out}: its numbers would go to {file}, which it is drawn from; give another name")
    with tempfile.TemporaryDirectory() as folder:
        sources = args.sources if args.only is None else archives(args.sources, args.only, Path(folder))
        numbers = spec.draw(sources, out, *options)
    file.write_text(json.dumps(finite(numbers)), encoding="utf-8")
    for table in tables(numbers, units=spec.units):
        console.print(rich_table(table))
    written = " and ".join(str(out.with_suffix(suffix)) for suffix in dict.fromkeys((".png", ".svg", out.suffix)))
    console.print(f"figure: {written}\nnumbers: {file}", markup=False, soft_wrap=True)
    return 0


def archives(sources: Sequence[Path], cells: Sequence[str], folder: Path) -> list[Path]:
    """Archives of some cells of each source.

    Args:
        sources: folders or archives of studies.
        cells: names of the cells.
        folder: where the archives are written.

    Raises:
        InputError: a source has no run of these names.
    """
    files = [folder / f"{i}.json" for i in range(len(sources))]
    for source, file in zip(sources, files, strict=True):
        write_archive([source], file, cells)
    return files


def rich_table(table: TextTable) -> Table:
    """Convert a table of text into a rich table, with the numbers right-aligned."""
    title = Text(table.title) if table.title else None
    rich = Table(title=title, title_justify="left", show_header=any(table.columns))
    for i, name in enumerate(table.columns):
        rich.add_column(Text(name), justify="right" if i else "left")
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich
