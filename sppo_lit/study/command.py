"""``sppo study FILE``: run the jobs of a study that are not done yet, display them, and write the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.live import Live

from sppo_lit.errors import InputError
from sppo_lit.study import display
from sppo_lit.study.archive import write_archive
from sppo_lit.study.plan import TRAIN, Job, Study, jobs, read, write_study_json
from sppo_lit.study.report import write_report
from sppo_lit.study.runner import Runner
from sppo_lit.utils.command import CommandParser, names
from sppo_lit.utils.console import console, is_interactive

AFTER = 4
"""Where a validation's own flags begin: after run, validate, its config.yaml and its checkpoint."""


def study(arguments: Sequence[str], settings_of: Callable[[Sequence[str]], object]) -> int:
    """Run the jobs of a study that are not done yet, and write its report.

    Args:
        arguments: command-line arguments after ``sppo study``.
        settings_of: checks the arguments of ``sppo run``; raises `InputError` if it would refuse them.

    Returns:
        Exit code: 1 if any run failed, else 0.

    Raises:
        InputError: a bad file or flag, in the study or in the recipe's settings.
        KeyboardInterrupt: Ctrl-C, with a line on how to go on.
    """
    parser = CommandParser(prog="sppo study", description="Compare algorithms: run a grid of runs and report on it.")
    parser.add_argument("file", metavar="FILE", help="YAML of the study, e.g. recipes/study/quickstart.yaml")
    parser.add_argument("--seeds", type=_integers, metavar="N,N", help="only these seeds, also others than its own")
    parser.add_argument("--only", type=names, metavar="CELL,CELL", help="only these of its cells")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="another folder than the study's own")
    parser.add_argument("--report", action="store_true", help="run nothing, make the report again")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="also write all runs as one JSON, for figures")
    args = parser.parse_args(list(arguments))
    plan = read(args.file, args.out)
    if args.archive is not None and args.archive.is_dir():
        raise InputError(f"study: --archive {args.archive} is a folder; give the name of a file")
    if args.report and (args.seeds or args.only):
        raise InputError("study: --report is of all runs; leave out --seeds and --only ('sppo figure' takes --only)")
    failed = False
    if not args.report:
        todo = jobs(plan, args.seeds, args.only)
        check(todo, settings_of)
        failed = not run(plan, todo, args.file)
    try:
        console.print(f"report: {write_report(plan.out)}", markup=False, soft_wrap=True)
    except InputError as error:
        console.print(f"no report: {error}", style="yellow", markup=False, soft_wrap=True)
    if args.archive is not None:
        write_archive([plan.out], args.archive)
        console.print(f"archive: {args.archive}", markup=False, soft_wrap=True)
    return int(failed)


def check(jobs: Sequence[Job], settings_of: Callable[[Sequence[str]], object]) -> None:
    """Refuse a flag or value that a run would not take before hours are spent on other cells.

    Args:
        jobs: the jobs to run; of each cell, one training and one validation of each name is checked.
        settings_of: checks the arguments of ``sppo run``.

    Raises:
        InputError: the cell and what is wrong with it.
    """
    trainings = {job.cell: job.arguments[2:] for job in jobs if job.stage == TRAIN}
    for job in {(job.cell, job.stage): job for job in jobs}.values():
        # A validation has the settings of its cell from the config.yaml of a run that does not exist yet.
        more = () if job.stage == TRAIN else job.arguments[AFTER:]
        try:
            settings_of([job.arguments[1], *trainings[job.cell], *more])
        except InputError as error:
            where = f"cell {job.cell}" if job.stage == TRAIN else f"after.{job.stage}, cell {job.cell}"
            raise InputError(f"{where}: {error}") from error


def run(plan: Study, todo: Sequence[Job], file: str) -> bool:
    """Run the jobs and display them: a live table on a terminal, a line for each change anywhere else.

    Args:
        plan: the study.
        todo: jobs of the study.
        file: path of the study as the user typed it, for messages.

    Returns:
        Whether all jobs are done.

    Raises:
        InputError: a job was run with other settings before, or another process runs in the study's folder.
        KeyboardInterrupt: Ctrl-C, with a line on how to go on.
    """
    live: Live | None = None

    def print_change(job: Job) -> None:
        if live is None:
            console.print(display.line(job, runner.progress[job]), markup=False, soft_wrap=True)

    runner = Runner(plan, todo, print_change)
    write_study_json(plan, runs=any(progress.state != "done" for progress in runner.progress.values()))
    start = time.monotonic()

    def table() -> RenderableType:
        return display.table(plan, runner.progress, console.height, time.monotonic() - start)

    try:
        if is_interactive(console):
            with Live(console=console, get_renderable=table, auto_refresh=False) as live:
                runner.run(live.refresh)
        else:
            runner.run(lambda: None)
            console.print(table())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"study stopped; what is done is kept: 'sppo study {file}' goes on") from None
    display.print_failures(console, todo, runner.progress)
    return all(p.state == "done" for p in runner.progress.values())


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
