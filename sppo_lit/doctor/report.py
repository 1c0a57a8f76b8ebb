"""The report of `sppo doctor`, and its flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sppo_lit.doctor.memory import Need
from sppo_lit.errors import InputError
from sppo_lit.utils.command import CommandParser
from sppo_lit.utils.console import visible

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


@dataclass(frozen=True)
class Prompt:
    """The first prompt of a set.

    Attributes:
        name: of the set.
        text: all that the model reads, special tokens included.
        tokens: its length.
    """

    name: str
    text: str
    tokens: int


def show_prompts(prompts: Sequence[Prompt], console: Console) -> None:
    """Print the first prompt of each set, character by character as the model reads it."""
    for prompt in prompts:
        title = f"First prompt of {prompt.name}, as the model reads it ({prompt.tokens} tokens)"
        console.print(Text(title, "italic"))
        console.print(Padding(Text(visible(prompt.text)), (0, 0, 1, 2), expand=False))


def size(count: int) -> str:
    """Bytes for reading, e.g. ``13.7 GiB``."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def show(checks: Sequence[Check], estimate: Sequence[Need], console: Console) -> None:
    """Print the estimate and the table of checks."""
    memory = Table("memory of one process", "sampling", "updating", "how", title="Peak memory", title_justify="left")
    for column in memory.columns[1:3]:
        column.justify = "right"
    for n in estimate:
        if n.sampling or n.updating:
            memory.add_row(n.what, *(size(count) if count else "–" for count in (n.sampling, n.updating)), n.how)
    memory.add_section()
    totals = (sum(n.sampling for n in estimate), sum(n.updating for n in estimate))
    memory.add_row("together", *map(size, totals), style="bold")
    console.print(memory)
    table = Table("check", "", title="Checks", title_justify="left")
    table.add_column("result", overflow="fold")
    for c in checks:
        verdict = Text("good", "green") if c.good else Text("bad", "bold red")
        table.add_row(Text(c.name), verdict, Text(c.detail))
    console.print(table)
    for c in checks:
        if not c.good:  # outside the table, and unwrapped: to be copied
            console.print(Text.assemble(("what to do about ", "dim"), (c.name, "bold")))
            for advice in c.advice.split("; "):
                console.print(Text(f"  {advice}"), soft_wrap=True)
    bad = sum(not c.good for c in checks)
    some = f"[bold red]{bad} of {len(checks)} checks {'is' if bad == 1 else 'are'} bad"
    console.print(some if bad else f"[green]all {len(checks)} checks are good")


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
    if args.memory is not None and not args.memory > 0:
        raise InputError(f"doctor: --memory {args.memory:g}: GiB of one GPU, above 0")
    return args, rest
