"""The report of `sppo doctor`, and its flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sppo_lit.doctor.memory import Need
from sppo_lit.errors import InputError
from sppo_lit.utils.command import CommandParser

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what is checked.
        good: whether it passed.
        detail: the numbers.
        advice: what to do if it failed.
    """

    name: str
    good: bool
    detail: str
    advice: str = ""


def size(count: int) -> str:
    """Bytes for reading, e.g. ``13.7 GiB``."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def show(checks: Sequence[Check], estimate: Sequence[Need], console: Console) -> None:
    """Print the estimate and the table of checks."""
    memory = Table("memory of one process", "sampling", "updating", title="Peak memory", title_justify="left")
    for column in memory.columns[1:]:
        column.justify = "right"
    for n in estimate:
        if n.sampling or n.updating:
            memory.add_row(n.what, *(size(count) if count else "–" for count in (n.sampling, n.updating)))
    memory.add_section()
    totals = (sum(n.sampling for n in estimate), sum(n.updating for n in estimate))
    memory.add_row("together", *map(size, totals), style="bold")
    console.print(memory)
    table = Table("check", "", "result", "what to do", show_lines=True, title="Checks", title_justify="left")
    for c in checks:
        verdict = Text("good", "green") if c.good else Text("bad", "bold red")
        table.add_row(Text(c.name), verdict, Text(c.detail), Text("" if c.good else c.advice))
    console.print(table)
    bad = sum(not c.good for c in checks)
    end = f"[bold red]{bad} of {len(checks)} checks are bad" if bad else f"[green]all {len(checks)} checks are good"
    console.print(end)


def options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the flags of `sppo doctor`; returns them and the remaining arguments, those of a run.

    Raises:
        InputError: an invalid value.
    """
    parser = CommandParser(prog="sppo doctor", allow_abbrev=False, add_help=False)
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--memory", type=float)
    args, rest = parser.parse_known_args(list(arguments))
    if args.problems < 2:
        raise InputError(f"doctor: --problems {args.problems}: at least 2 are needed")
    return args, rest
