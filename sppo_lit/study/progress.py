"""Progress of the jobs of a study, read from what their runs write, and the status files of the jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sppo_lit.study.plan import TRAIN, Job
from sppo_lit.utils.files import written_whole
from sppo_lit.utils.run_log import read_metrics

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class Progress:
    """Progress of a job.

    Attributes:
        state: of its process.
        iteration: iterations done.
        accuracy: latest held-out accuracy, in [0, 1].
        share: used share of the budget, in [0, 1].
        remaining: estimated seconds until it is done.
        seconds: wall-clock seconds of its process.
        earlier: whether an earlier call of the command has done it.
        started: `time.monotonic` at the start of its process, in seconds.
        share_at_start: `share` at the start of its process, which may go on from a checkpoint.
    """

    state: State = "waiting"
    iteration: int | None = None
    accuracy: float | None = None
    share: float | None = None
    remaining: float | None = None
    seconds: float | None = None
    earlier: bool = False
    started: float = 0.0
    share_at_start: float = 0.0

    def start(self, job: Job, budget: Mapping[str, float]) -> None:
        """Note that the job's process has just been started.

        Args:
            job: the job.
            budget: `Study.budget`.
        """
        self.update(job, budget)
        self.state, self.started, self.seconds = "running", time.monotonic(), 0.0
        self.share_at_start = self.share or 0.0

    def update(self, job: Job, budget: Mapping[str, float]) -> None:
        """Read the metrics of the run; a file that is incomplete or missing changes nothing.

        Args:
            job: the job.
            budget: `Study.budget`.
        """
        if self.state == "running":
            self.seconds = time.monotonic() - self.started
        file = job.run / "metrics.csv"
        if job.stage != TRAIN or not file.is_file():
            return
        try:
            series = read_metrics(file)
        except (OSError, ValueError, TypeError):  # the last line may be half written
            return
        [(unit, limit)] = budget.items()
        iterations, used = series.get(f"clock/{unit}", ([], []))
        if iterations:
            self.iteration, self.share = int(iterations[-1]), min(1.0, used[-1] / limit)
        if accuracies := series.get("val/accuracy", ([], []))[1]:
            self.accuracy = accuracies[-1]
        gained, left = (self.share or 0.0) - self.share_at_start, 1 - (self.share or 0.0)
        if self.state == "running" and gained > 0:
            self.remaining = (self.seconds or 0.0) * left / gained if left else None  # the last evaluation goes on


def is_done(job: Job) -> bool:
    """Whether an earlier call has finished the job with the same arguments."""
    status = _read(job.status)
    return bool(status.get("done")) and status.get("arguments") == list(job.arguments)


def changed_argument(job: Job) -> str | None:
    """The first argument that differs from an earlier call of the job; None if none does or there was no such call."""
    if not (before := _read(job.status).get("arguments")):
        return None
    changed = [a for a in job.arguments if a not in before] or [a for a in before if a not in job.arguments]
    return changed[0] if changed else None


def write_status(job: Job, done: bool, seconds: float | None = None) -> None:
    """Write the status file of a job that was started or is done.

    Args:
        job: the job.
        done: whether it is done.
        seconds: wall-clock seconds of its process.
    """
    with written_whole(job.status) as temporary:
        content = {"arguments": job.arguments, "done": done, "seconds": seconds}
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read(status: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(status.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def last_lines(log: Path, count: int = 8) -> list[str]:
    """The last `count` lines of a log that are not blank; none if it cannot be read."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
