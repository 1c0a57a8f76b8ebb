"""Processes that Lightning launches on this machine: if one fails, all end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning.pytorch as pl

_LAUNCHER = "SPPO_LIT_LAUNCHER"
GRACE = 3.0
"""Seconds for a process to end by itself, with its own error, after another one has ended."""

Ranks = Sequence["subprocess.Popen[bytes]"]


@contextmanager
def together() -> Iterator[None]:
    """Context of a run: processes launched in it end when this one does."""
    if launched():
        threading.Thread(target=_watch_parent, args=(int(os.environ[_LAUNCHER]),), daemon=True).start()
        yield
        return
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_LAUNCHER, None)


def launched() -> bool:
    """Whether this process is a rank launched by another process of the run (not by torchrun or SLURM)."""
    return _LAUNCHER in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def launched_ranks(trainer: pl.Trainer) -> Ranks:
    """The processes launched by this one: ranks 1, 2, … of this machine."""
    return getattr(getattr(trainer.strategy, "launcher", None), "procs", [])


def watch_ranks(trainer: pl.Trainer) -> None:
    """Start a thread that ends this process and all that it launches if one of these fails or is interrupted.

    To be called before any is launched: this process cannot be interrupted while it waits for them to connect.
    """
    if not launched() and hasattr(getattr(trainer.strategy, "launcher", None), "procs"):
        threading.Thread(target=_watch_ranks, args=(trainer,), daemon=True).start()


def end(ranks: Ranks, grace: float = 0.0) -> None:
    """Kill the launched ranks that have not ended after `grace` seconds."""
    deadline = time.monotonic() + grace
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_end(ranks: Ranks) -> None:
    """After another rank was lost, wait for the watcher, which names it and ends this process."""
    if ranks or launched():
        time.sleep(2 * GRACE)


def _watch_ranks(trainer: pl.Trainer) -> None:
    while True:
        time.sleep(0.5)
        ranks = launched_ranks(trainer)
        _quiet_lightning()
        codes = [process.poll() for process in ranks]
        if ranks and all(code == 0 for code in codes):
            return
        failed = next((i for i, code in enumerate(codes) if code), None)
        if failed is None:
            continue
        time.sleep(GRACE)
        code = int(codes[failed] or 0)
        if code in (-signal.SIGINT, 128 + signal.SIGINT):  # Ctrl-C while this process waits for it to connect
            _leave("interrupted", ranks, 128 + signal.SIGINT)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        _leave(f"rank {failed + 1} (process {ranks[failed].pid}) {how}; the run ends", ranks)


def _quiet_lightning() -> None:
    """Lightning's own observer would kill this process before it prints why."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _leave(f"rank {os.environ.get('LOCAL_RANK')}: the process that launched it ({parent}) has died; it ends too")


def _leave(line: str, ranks: Ranks = (), code: int = 1) -> None:
    os.write(2, f"sppo: {line}\n".encode())
    for process in ranks:
        process.kill()
    os._exit(code)
