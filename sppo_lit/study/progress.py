"""How far each run of a study is, read from what the run writes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sppo_lit.study.plan import TRAIN, Job
from sppo_lit.utils.run_log import read_metrics

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class Progress:
    """What is known of a job.

    Attributes:
        state: of its process.
        iteration: iterations done.
        accuracy: held-out accuracy, the latest.
        share: of the budget that is used.
        left: seconds until it is done, estimated.
        seconds: wall-clock seconds of its process so far, or in all.
        kept: done by an earlier call, not by this one.
    """

    state: State = "waiting"
    iteration: int | None = None
    accuracy: float | None = None
    share: float | None = None
    left: float | None = None
    seconds: float | None = None
    kept: bool = False
    started: float = 0.0
    share_at_start: float = 0.0

    def begin(self, job: Job, budget: Mapping[str, float]) -> None:
        """Its process has just started, perhaps from a checkpoint."""
        self.state, self.started = "running", time.monotonic()
        self.look(job, budget)
        self.share_at_start = self.share or 0.0

    def look(self, job: Job, budget: Mapping[str, float]) -> None:
        """Read its metrics; a file that is being written, or is not there yet, changes nothing.

        Args:
            job: the job.
            budget: of a run, `Study.budget`.
        """
        if self.state == "running":
            self.seconds = time.monotonic() - self.started
        file = job.runs / "version_0" / "metrics.csv"
        if job.stage != TRAIN or not file.is_file():
            return
        try:
            series = read_metrics(file)
        except (OSError, ValueError, TypeError):  # a line that is half written
            return
        [(unit, most)] = budget.items()
        iterations, used = series.get(f"clock/{unit}", ([], []))
        if iterations:
            self.iteration, self.share = int(iterations[-1]), min(1.0, used[-1] / most)
        if scores := series.get("val/accuracy", ([], []))[1]:
            self.accuracy = scores[-1]
        gained = (self.share or 0.0) - self.share_at_start
        if self.state == "running" and gained > 0:
            self.left = (self.seconds or 0.0) * (1 - (self.share or 0.0)) / gained


def is_done(job: Job) -> bool:
    """Whether an earlier call has finished this very command."""
    note = _read(job.note)
    return bool(note.get("done")) and note.get("arguments") == list(job.arguments)


def differs(job: Job) -> str | None:
    """The first argument in which an earlier call of this job differs; None if none does or there was none."""
    if not (before := _read(job.note).get("arguments")):
        return None
    changed = [a for a in job.arguments if a not in before] or [a for a in before if a not in job.arguments]
    return changed[0] if changed else None


def write_note(job: Job, done: bool, seconds: float | None = None) -> None:
    """Note that the job has begun, or is done."""
    job.note.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.note.with_suffix(".tmp")
    temporary.write_text(json.dumps({"arguments": job.arguments, "done": done, "seconds": seconds}), encoding="utf-8")
    temporary.replace(job.note)


def _read(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def last_lines(log: Path, count: int = 8) -> list[str]:
    """The end of a log without blank lines."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
