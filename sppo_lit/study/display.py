"""Display of a running study: a live table of its jobs, a plain line for each change, and the logs of failures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sppo_lit.study.plan import TRAIN, Job, Study
from sppo_lit.study.progress import Progress, last_lines
from sppo_lit.utils.console import duration, shorten, visible

STYLES = {"waiting": "dim", "running": "cyan", "done": "green", "failed": "red", "stopped": "yellow"}
PRIORITY = ("running", "failed", "stopped", "waiting", "done")
"""States of the jobs that are shown first where the screen is too small for all."""


def table(study: Study, progress: Mapping[Job, Progress], height: int, elapsed: float) -> RenderableType:
    """Table of the jobs with state, iteration, held-out accuracy, budget, time and remaining time.

    Args:
        study: the study.
        progress: progress of every job.
        height: lines of the screen.
        elapsed: wall-clock seconds since the command was started.
    """
    title = Text(visible(study.title), "bold")
    if study.protocol:
        title.append(f" · {study.protocol.replace('_', ' ')}", "not bold dim")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge, table.show_edge = (0, 1, 0, 0), False, False  # fits in 80 columns
    table.add_column("cell", overflow="fold")
    for name in ("seed", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("iteration", "accuracy", "budget", "time", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    jobs = select(progress, max(3, height - 5))
    for job in jobs:
        p = progress[job]
        table.add_row(
            job.cell if job.stage == TRAIN else f"{job.cell} · {job.stage}",
            str(job.seed),
            Text(p.state, STYLES[p.state]),
            "" if p.iteration is None else str(p.iteration),
            "" if p.accuracy is None else f"{p.accuracy:.1%}",
            "" if p.share is None else f"{p.share:.0%}",
            "" if p.seconds is None else duration(p.seconds),
            duration(p.remaining) if p.state == "running" and p.remaining is not None else "",
            style="" if p.state in ("running", "failed") else "dim",
        )
    hidden = len(progress) - len(jobs)
    return Group(table, Text(summary(study, progress, elapsed) + (f" · {hidden} not shown" if hidden else ""), "dim"))


def select(progress: Mapping[Job, Progress], rows: int) -> list[Job]:
    """Select the jobs to show where there is room for `rows`: the first by `PRIORITY`, in their original order."""
    ranked = sorted(progress, key=lambda job: PRIORITY.index(progress[job].state))
    selected = set(ranked[:rows])
    return [job for job in progress if job in selected]


def summary(study: Study, progress: Mapping[Job, Progress], elapsed: float) -> str:
    """Count the jobs by state and estimate the remaining time, in one line.

    Args:
        study: the study.
        progress: progress of every job.
        elapsed: wall-clock seconds since the command was started.
    """
    counts = {state: sum(p.state == state for p in progress.values()) for state in STYLES}
    parts = [f"{n} {state}" for state, n in counts.items() if n]
    if earlier := sum(p.earlier for p in progress.values()):
        parts.append(f"{earlier} of them before")
    left = remaining(study, progress)
    return " · ".join([*parts, f"{duration(elapsed)} elapsed", *([f"about {duration(left)} left"] if left else [])])


def remaining(study: Study, progress: Mapping[Job, Progress]) -> float | None:
    """Seconds until all trainings are done, extrapolated from those that ran; None before there is anything to go by.

    Args:
        study: the study.
        progress: progress of every job.
    """
    trainings = [p for job, p in progress.items() if job.stage == TRAIN]
    whole = [p.seconds for p in trainings if p.state == "done" and p.seconds]
    whole += [p.seconds + p.remaining for p in trainings if p.seconds and p.remaining and not p.share_at_start]
    waiting = sum(p.state == "waiting" for p in trainings)
    running = [p.remaining or 0.0 for p in trainings if p.state == "running"]
    if not whole or not (waiting or running):
        return None
    return max([(sum(running) + waiting * sum(whole) / len(whole)) / study.at_once, *running])


def line(job: Job, p: Progress) -> str:
    """One line for a log file on a job whose state has changed."""
    parts = [f"{time.strftime('%H:%M:%S')} {job.title}: {p.state}"]
    parts += [f"iteration {p.iteration}"] if p.iteration is not None else []
    parts += [f"accuracy {p.accuracy:.1%}"] if p.accuracy is not None else []
    parts += [duration(p.seconds)] if p.state != "running" and p.seconds is not None else []
    return " · ".join(parts)


def print_failures(console: Console, jobs: Sequence[Job], progress: Mapping[Job, Progress]) -> None:
    """Print the end of the log of every job that failed."""
    for job in jobs:
        if progress[job].state == "failed" and (lines := last_lines(job.log)):
            text = Text("\n".join(shorten(visible(entry), 300) for entry in lines))
            console.print(Panel(text, title=f"{job.title} failed", title_align="left", border_style="red"))
            console.print(Text(f"whole log: {job.log}", "dim"), soft_wrap=True)
