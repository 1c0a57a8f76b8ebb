"""``sppo study FILE``: run what is not done yet, show it, and write the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from sppo_lit.callbacks.progress import is_interactive
from sppo_lit.study import screen
from sppo_lit.study.plan import TRAIN, Job, Study, jobs, read
from sppo_lit.study.runner import Runner
from sppo_lit.utils.command import CommandParser
from sppo_lit.utils.console import console as shared


def study(arguments: Sequence[str]) -> int:
    """The command; 1 if any run failed.

    Raises:
        InputError: a bad file or flag, in the study or in the recipe's settings.
        KeyboardInterrupt: Ctrl-C, with a line on how to go on.
    """
    parser = CommandParser(prog="sppo study", description="Compare algorithms: run a grid of runs and report on it.")
    parser.add_argument("file", metavar="FILE", help="YAML of the study, e.g. recipes/study/quickstart.yaml")
    parser.add_argument("--seeds", type=_integers, metavar="N,N", help="only these of its seeds")
    parser.add_argument("--only", type=_names, metavar="CELL,CELL", help="only these of its cells")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="another folder than the study's own")
    parser.add_argument("--report", action="store_true", help="run nothing, make the report again")
    options = parser.parse_args(list(arguments))
    plan = read(options.file, options.out)
    todo = jobs(plan, options.seeds, options.only)
    failed = False
    if not options.report:
        check(plan, todo)
        failed = not run(plan, todo, shared, options.file)
    report(plan, shared)
    return int(failed)


def check(plan: Study, todo: Sequence[Job]) -> None:
    """Refuse a flag that the recipe does not have before hours are spent on other cells.

    Raises:
        InputError: the cell and what is wrong with it.
    """
    from sppo_lit.cli.main import translate
    from sppo_lit.cli.recipe_cli import settings_of
    from sppo_lit.errors import InputError

    for cell in dict.fromkeys(job.cell for job in todo):
        first = next(job for job in todo if job.cell == cell and job.stage == TRAIN)
        try:
            settings_of(translate(first.arguments[1:]))
        except InputError as error:
            raise InputError(f"cell {cell}: {error}") from error


def run(plan: Study, todo: Sequence[Job], console: Console, file: str) -> bool:
    """Run the jobs; whether all are done."""
    live: Live | None = None

    def changed(job: Job) -> None:
        if live is None:
            console.print(screen.line(job, runner.progress[job]), markup=False, soft_wrap=True)

    runner = Runner(plan, todo, changed)
    write_plan(plan)
    start = time.monotonic()

    def picture() -> object:
        return screen.table(plan, runner.progress, console.height, time.monotonic() - start)

    try:
        if is_interactive(console):
            with Live(picture(), console=console, refresh_per_second=2, auto_refresh=False) as live:  # type: ignore[arg-type]
                runner.run(lambda: live.update(picture(), refresh=True))  # type: ignore[union-attr, arg-type]
                live.update(picture(), refresh=True)  # type: ignore[arg-type]
        else:
            runner.run(lambda: None)
            console.print(picture())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"study stopped; what is done is kept: 'sppo study {file}' goes on") from None
    screen.failures(console, todo, runner.progress)
    return all(p.state == "done" for p in runner.progress.values())


def write_plan(plan: Study) -> None:
    """What the report has to know of the study: ``<out>/study.json``."""
    plan.out.mkdir(parents=True, exist_ok=True)
    content = {
        "title": plan.title,
        "recipe": os.path.relpath(plan.recipe) if Path(plan.recipe).is_relative_to(Path.cwd()) else plan.recipe,
        "budget": dict(plan.budget),
        "baseline": plan.baseline,
        "seeds": list(plan.seeds),
        "common": dict(plan.common),
        "cells": {name: dict(flags) for name, flags in plan.cells.items()},
        "after": {name: dict(flags) for name, flags in plan.after.items()},
    }
    (plan.out / "study.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def report(plan: Study, console: Console) -> None:
    """Write the report and say where it is, or why there is none."""
    from sppo_lit.errors import InputError
    from sppo_lit.study.analysis.report import write

    try:
        console.print(f"report: {write(plan.out)}", markup=False, soft_wrap=True)
    except InputError as error:
        console.print(f"no report: {error}", style="yellow", markup=False, soft_wrap=True)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")
