"""``sppo study FILE``: run what is not done yet, show it, and write the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from sppo_lit.errors import InputError
from sppo_lit.study import display
from sppo_lit.study.plan import TRAIN, Job, Study, jobs, read
from sppo_lit.study.runner import Runner
from sppo_lit.utils.command import CommandParser
from sppo_lit.utils.console import console as shared
from sppo_lit.utils.console import is_interactive


def study(arguments: Sequence[str], settings_of: Callable[[Sequence[str]], object]) -> int:
    """Run the jobs of a study that are not done yet, and write its report.

    Args:
        arguments: command-line arguments after ``sppo study``.
        settings_of: parses the arguments of ``sppo run``; raises `InputError` if a recipe does not have a flag.

    Returns:
        Exit code: 1 if any run failed, else 0.

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
        check(todo, settings_of)
        failed = not run(plan, todo, shared, options.file)
    report(plan, shared)
    return int(failed)


def check(jobs: Sequence[Job], settings_of: Callable[[Sequence[str]], object]) -> None:
    """Refuse a flag that the recipe does not have before hours are spent on other cells.

    Args:
        jobs: the jobs to run; the training of each cell is checked once.
        settings_of: parses the arguments of ``sppo run``.

    Raises:
        InputError: the cell and what is wrong with it.
    """
    for job in {job.cell: job for job in jobs if job.stage == TRAIN}.values():
        try:
            settings_of(job.arguments[1:])
        except InputError as error:
            raise InputError(f"cell {job.cell}: {error}") from error


def run(plan: Study, todo: Sequence[Job], console: Console, file: str) -> bool:
    """Run the jobs; whether all are done."""
    live: Live | None = None

    def changed(job: Job) -> None:
        if live is None:
            console.print(display.line(job, runner.progress[job]), markup=False, soft_wrap=True)

    runner = Runner(plan, todo, changed)
    write_plan(plan)
    start = time.monotonic()

    def picture() -> object:
        return display.table(plan, runner.progress, console.height, time.monotonic() - start)

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
    display.failures(console, todo, runner.progress)
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
    from sppo_lit.study.report import write

    try:
        console.print(f"report: {write(plan.out)}", markup=False, soft_wrap=True)
    except InputError as error:
        console.print(f"no report: {error}", style="yellow", markup=False, soft_wrap=True)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")
