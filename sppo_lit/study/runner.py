"""Runs the jobs of a study in processes of their own, and goes on where an earlier call was interrupted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo_lit.errors import InputError
from sppo_lit.study.plan import TRAIN, Job, Study
from sppo_lit.study.progress import Progress, differs, is_done, write_note

POLL = 0.2
"""Seconds between two looks at the processes."""

LOOK = 2.0
"""Seconds between two looks at what a run has logged."""

GRACE = 30.0
"""Seconds that a process gets to leave after SIGTERM."""

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass
class _Process:
    job: Job
    slot: int
    popen: subprocess.Popen[bytes]
    looked: float


class Runner:
    """Starts jobs in order, so many at once, and watches them.

    Args:
        study: the study.
        jobs: of it, in the order in which they start.
        on_change: called with a job whose state has changed.

    Attributes:
        progress: of every job.

    Raises:
        InputError: a job was begun by an earlier call with other settings.
    """

    def __init__(self, study: Study, jobs: Sequence[Job], on_change: Callable[[Job], None]) -> None:
        self.study, self.jobs, self.on_change = study, list(jobs), on_change
        self.progress = {job: Progress() for job in jobs}
        self._running: list[_Process] = []
        self._lock: int | None = None
        for job in jobs:
            if changed := differs(job):
                raise InputError(
                    f"study: {job.title} was run with other settings ({changed[:200]}); choose another folder (out) "
                    f"or delete {job.runs} and {job.note} to run it again"
                )
            if is_done(job):
                progress = self.progress[job]
                progress.state, progress.kept = "done", True
                progress.look(job, study.budget)

    def run(self, on_tick: Callable[[], None]) -> None:
        """Until every job is done or has failed.

        Args:
            on_tick: called several times a second.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when all processes have ended.
        """
        with _locked(self.study.out) as self._lock, _sigterm_interrupts():
            try:
                while self._advance():
                    on_tick()
                    time.sleep(POLL)
            finally:
                self._stop()

    def _advance(self) -> bool:
        """Look after the processes, start what can start; False when nothing is left."""
        now = time.monotonic()
        for process in list(self._running):
            code = process.popen.poll()
            if code is not None:
                self._running.remove(process)
                self._ended(process.job, code)
            elif now - process.looked > LOOK:
                process.looked = now
                self.progress[process.job].look(process.job, self.study.budget)
        for job in self.jobs:
            free = set(range(self.study.at_once)) - {p.slot for p in self._running}
            if not free:
                break
            if self.progress[job].state == "waiting" and self._may_start(job):
                self._start(job, min(free))
        return bool(self._running)

    def _may_start(self, job: Job) -> bool:
        """A further command waits for the training of its cell, and is given up with it."""
        if job.stage == TRAIN:
            return True
        needed = next((j for j in self.jobs if (j.cell, j.seed, j.stage) == (job.cell, job.seed, TRAIN)), None)
        state = self.progress[needed].state if needed else "done"
        if state == "failed":
            self.progress[job].state = "failed"
        return state == "done"

    def _start(self, job: Job, slot: int) -> None:
        job.record.parent.mkdir(parents=True, exist_ok=True)
        write_note(job, done=False)
        arguments = [*job.arguments, *resume(job)]
        with job.log.open("ab") as log:
            log.write(f"$ sppo {' '.join(arguments)}\n".encode())
            log.flush()
            popen = subprocess.Popen(
                [sys.executable, "-m", "sppo_lit.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self.study, slot),
                start_new_session=True,
                pass_fds=() if self._lock is None else (self._lock,),
                preexec_fn=_leave_with_parent,
            )
        self._running.append(_Process(job, slot, popen, time.monotonic()))
        self.progress[job].begin(job, self.study.budget)
        self.on_change(job)

    def _ended(self, job: Job, code: int) -> None:
        progress = self.progress[job]
        progress.look(job, self.study.budget)
        progress.state, progress.left = ("done" if code == 0 else "failed"), None
        if code == 0:
            write_note(job, done=True, seconds=progress.seconds)
        self.on_change(job)

    def _stop(self) -> None:
        """End what still runs: politely, then not."""
        for process in self._running:
            _signal(process.popen, signal.SIGTERM)
        until = time.monotonic() + GRACE
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, until - time.monotonic()))
            _signal(process.popen, signal.SIGKILL)  # also what the process has left behind in its group
            process.popen.wait()
            self.progress[process.job].state = "stopped"
        self._running = []


def resume(job: Job) -> list[str]:
    """Flags that make a training go on from its last checkpoint; a run without one is removed and starts again."""
    if job.stage != TRAIN:
        return []
    if any(job.runs.glob("version_*/checkpoints/last.ckpt")):
        return ["--ckpt_path=last"]
    shutil.rmtree(job.runs, ignore_errors=True)
    return []


def environment(study: Study, slot: int) -> dict[str, str]:
    """Environment variables of the run in a slot: its threads and its device."""
    kept = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    changes = {"OMP_NUM_THREADS": str(study.threads), "PYTHONUNBUFFERED": "1"}
    if study.devices:
        kind, _, number = study.devices[slot % len(study.devices)].partition(":")
        visible = kept.get("CUDA_VISIBLE_DEVICES", "").split(",")
        known = int(number) < len(visible) and visible != [""] if number else False
        changes["CUDA_VISIBLE_DEVICES"] = "" if kind == "cpu" else visible[int(number)] if known else number
    return kept | changes


def _signal(popen: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, number)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _leave_with_parent() -> None:
    """In the new process: get SIGTERM when the study is killed (Linux), so that no run stays behind unseen."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the study as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _locked(out: Path, patience: float = 2 * GRACE) -> Iterator[int]:
    """One study at a time in a folder; runs of a killed study hold the lock until they have left.

    Raises:
        InputError: still held after `patience` seconds.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(
                        f"study: another one, or a run of it, is still at work in {out}; wait for it or choose another "
                        "folder (out)"
                    ) from None
                time.sleep(POLL)
        yield lock
    finally:
        os.close(lock)
