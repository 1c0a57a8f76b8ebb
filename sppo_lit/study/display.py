"""A study on a terminal: a live table of its jobs, plain lines anywhere else, and what went wrong at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sppo_lit.study.plan import TRAIN, Job, Study
from sppo_lit.study.progress import Progress, last_lines
from sppo_lit.utils.console import duration, shorten, visible

LOOKS = {"waiting": "dim", "running": "cyan", "done": "green", "failed": "red", "stopped": "yellow"}
URGENCY = ("running", "failed", "stopped", "waiting", "done")
"""Which jobs are shown first where the screen is too small for all."""


def table(study: Study, progress: Mapping[Job, Progress], height: int, elapsed: float) -> RenderableType:
    """The jobs with state, iteration, held-out accuracy, budget and time left.

    Args:
        study: the study.
        progress: of every job.
        height: lines of the screen.
        elapsed: wall-clock seconds of this call.
    """
    shown = Table(title=Text(visible(study.title), "bold"), title_justify="left")
    shown.add_column("cell")
    stages = any(job.stage != TRAIN for job in progress)
    for name in ("seed", *(["stage"] if stages else []), "state"):
        shown.add_column(name, no_wrap=True)
    for name in ("iteration", "accuracy", "budget", "time", "left"):
        shown.add_column(name, justify="right", no_wrap=True)
    jobs = fitting(progress, max(3, height - 7))
    for job in jobs:
        p = progress[job]
        state = "done before" if p.kept else p.state
        shown.add_row(
            job.cell,
            str(job.seed),
            *([job.stage] if stages else []),
            Text(state, LOOKS[p.state]),
            "" if p.iteration is None else str(p.iteration),
            "" if p.accuracy is None else f"{p.accuracy:.1%}",
            "" if p.share is None else f"{p.share:.0%}",
            "" if p.seconds is None else duration(p.seconds),
            duration(p.left) if p.state == "running" and p.left is not None else "",
            style="" if p.state in ("running", "failed") else "dim",
        )
    hidden = len(progress) - len(jobs)
    return Group(shown, Text(summary(study, progress, elapsed) + (f" · {hidden} not shown" if hidden else ""), "dim"))


def fitting(progress: Mapping[Job, Progress], rows: int) -> list[Job]:
    """At most so many jobs, the most urgent, in their order."""
    ranked = sorted(progress, key=lambda job: URGENCY.index(progress[job].state))
    kept = set(ranked[:rows])
    return [job for job in progress if job in kept]


def summary(study: Study, progress: Mapping[Job, Progress], elapsed: float) -> str:
    """Counts by state and the time left, in one line."""
    counts = {state: sum(p.state == state for p in progress.values()) for state in LOOKS}
    parts = [f"{n} {state}" for state, n in counts.items() if n]
    left = remaining(study, progress)
    return " · ".join([*parts, f"{duration(elapsed)} elapsed", *([f"about {duration(left)} left"] if left else [])])


def remaining(study: Study, progress: Mapping[Job, Progress]) -> float | None:
    """Seconds until all trainings are done, from those that ran; None before any has got anywhere."""
    training = [p for job, p in progress.items() if job.stage == TRAIN]
    whole = [p.seconds for p in training if p.state == "done" and p.seconds]
    whole += [p.seconds + p.left for p in training if p.seconds and p.left and not p.share_at_start]
    waiting = sum(p.state == "waiting" for p in training)
    running = [p.left or 0.0 for p in training if p.state == "running"]
    if not whole or not (waiting or running):
        return None
    return max([(sum(running) + waiting * sum(whole) / len(whole)) / study.at_once, *running])


def line(job: Job, p: Progress) -> str:
    """A job whose state has changed, for a log file."""
    parts = [f"{time.strftime('%H:%M:%S')} {job.title}: {p.state}"]
    parts += [f"iteration {p.iteration}"] if p.iteration is not None else []
    parts += [f"accuracy {p.accuracy:.1%}"] if p.accuracy is not None else []
    parts += [duration(p.seconds)] if p.state != "running" and p.seconds is not None else []
    return " · ".join(parts)


def failures(console: Console, jobs: Sequence[Job], progress: Mapping[Job, Progress]) -> None:
    """Print the end of the log of every job that failed."""
    for job in jobs:
        if progress[job].state == "failed" and (lines := last_lines(job.log)):
            text = Text("\n".join(shorten(visible(entry), 300) for entry in lines))
            console.print(Panel(text, title=f"{job.title} failed", title_align="left", border_style="red"))
            console.print(Text(f"whole log: {job.log}", "dim"), soft_wrap=True)
