"""Runner of a study: each job in a process of its own, continued where an earlier call was interrupted."""

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
from sppo_lit.study.progress import Progress, changed_argument, is_done, write_status
from sppo_lit.utils.console import console
from sppo_lit.utils.lock import NO_LOCKS, UNSUPPORTED

POLL_SECONDS = 0.2
"""Interval at which processes are checked."""

READ_SECONDS = 2.0
"""Interval at which the metrics of a run are read."""

GRACE_SECONDS = 30.0
"""Time between SIGTERM and SIGKILL."""

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass
class _Process:
    job: Job
    slot: int
    popen: subprocess.Popen[bytes]
    read_at: float


class Runner:
    """Starts the jobs of a study in order, `Study.at_once` at a time, and follows their progress.

    Args:
        study: the study.
        jobs: jobs of the study in the order in which they start.
        on_change: called with a job whose state has changed.

    Attributes:
        progress: progress of every job.

    Raises:
        InputError: an earlier call has started a job with other settings.
    """

    def __init__(self, study: Study, jobs: Sequence[Job], on_change: Callable[[Job], None]) -> None:
        self.study, self.jobs, self.on_change = study, list(jobs), on_change
        self.progress = {job: Progress() for job in jobs}
        self._running: list[_Process] = []
        self._lock: int | None = None
        for job in jobs:
            if changed := changed_argument(job):
                raise InputError(
                    f"study: {job.title} was run with other settings ({changed[:200]}); choose another folder (out) "
                    f"or delete {job.runs} and {job.status} to run it again"
                )
            if is_done(job):
                progress = self.progress[job]
                progress.state, progress.earlier = "done", True
                progress.update(job, study.budget)

    def run(self, on_tick: Callable[[], None]) -> None:
        """Run until every job is done or has failed.

        Args:
            on_tick: called every `POLL_SECONDS`.

        Raises:
            InputError: another process runs in the study's folder.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when all processes have ended.
        """
        with _locked(self.study.out) as self._lock, _sigterm_interrupts():
            try:
                while self._advance():
                    on_tick()
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop()

    def _advance(self) -> bool:
        """Check the processes and start jobs; False when nothing is left to run."""
        now = time.monotonic()
        for process in list(self._running):
            code = process.popen.poll()
            if code is not None:
                self._running.remove(process)
                self._ended(process.job, code)
            elif now - process.read_at > READ_SECONDS:
                process.read_at = now
                self.progress[process.job].update(process.job, self.study.budget)
        for job in self.jobs:
            free = set(range(self.study.at_once)) - {p.slot for p in self._running}
            if not free:
                break
            if self.progress[job].state == "waiting" and self._may_start(job):
                self._start(job, min(free))
        return bool(self._running)

    def _may_start(self, job: Job) -> bool:
        """Whether a job can start; a validation waits for the training of its cell, and fails with it."""
        if job.stage == TRAIN:
            return True
        training = next(j for j in self.jobs if (j.cell, j.seed, j.stage) == (job.cell, job.seed, TRAIN))
        state = self.progress[training].state
        if state == "failed":
            self.progress[job].state = "failed"
        return state == "done"

    def _start(self, job: Job, slot: int) -> None:
        job.record.parent.mkdir(parents=True, exist_ok=True)
        write_status(job, done=False)
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
                preexec_fn=_terminate_with_parent,
            )
        self._running.append(_Process(job, slot, popen, time.monotonic()))
        self.progress[job].start(job, self.study.budget)
        self.on_change(job)

    def _ended(self, job: Job, code: int) -> None:
        progress = self.progress[job]
        progress.update(job, self.study.budget)
        progress.state, progress.remaining = ("done" if code == 0 else "failed"), None
        if code == 0:
            write_status(job, done=True, seconds=progress.seconds)
        self.on_change(job)

    def _stop(self) -> None:
        """Terminate all running processes; kill them after `GRACE_SECONDS`."""
        for process in self._running:
            _signal(process.popen, signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, until - time.monotonic()))
            _signal(process.popen, signal.SIGKILL)  # its whole process group
            process.popen.wait()
            self.progress[process.job].state = "stopped"
        self._running = []


def resume(job: Job) -> list[str]:
    """Flags that continue a training from its last checkpoint.

    A training without a checkpoint starts again, and its folder is deleted.
    """
    if job.stage != TRAIN:
        return []
    if any(job.runs.glob("version_*/checkpoints/last.ckpt")):
        return ["--ckpt_path=last"]
    shutil.rmtree(job.runs, ignore_errors=True)
    return []


def environment(study: Study, slot: int) -> dict[str, str]:
    """Environment variables of a run, with its threads and its device.

    Args:
        study: the study.
        slot: number of the run among those at the same time, from 0.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    changes = {"OMP_NUM_THREADS": str(study.threads), "PYTHONUNBUFFERED": "1"}
    if study.devices:
        kind, _, number = study.devices[slot % len(study.devices)].partition(":")
        visible = inherited.get("CUDA_VISIBLE_DEVICES", "").split(",")
        listed = kind == "cuda" and visible != [""] and int(number) < len(visible)
        changes["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if listed else number  # "" for the CPU
    return inherited | changes


def _signal(popen: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, number)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _terminate_with_parent() -> None:
    """Called in the child process: SIGTERM when the study is killed (Linux), so that no run is left behind."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C within the block."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _locked(out: Path, timeout: float = 2 * GRACE_SECONDS) -> Iterator[int]:
    """Lock the folder of a study; runs of a killed study hold the lock until they have ended.

    Raises:
        InputError: still locked after `timeout` seconds.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(
                        f"study: another study, or a run of one, is still active in {out}; wait for it or choose "
                        "another folder (out)"
                    ) from None
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                console.print(f"{out}: {NO_LOCKS}", markup=False, soft_wrap=True)
                break
        yield lock
    finally:
        os.close(lock)
