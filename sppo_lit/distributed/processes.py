"""Processes that Lightning launches on this machine live and die together: none outlives another that failed."""

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
"""Seconds in which a process may end by itself, with an error of its own, after another one has ended."""

Ranks = Sequence["subprocess.Popen[bytes]"]


@contextmanager
def together() -> Iterator[None]:
    """Around a run: a process that it launches will know it by this, and dies with it."""
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
    """Whether this process is a rank that another process of the run has launched (not torchrun or SLURM)."""
    return _LAUNCHER in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0


def launched_ranks(trainer: pl.Trainer) -> Ranks:
    """The processes that this one has launched: ranks 1, 2, … of this machine."""
    return getattr(getattr(trainer.strategy, "launcher", None), "procs", [])


def watch_ranks(ranks: Ranks) -> None:
    """From now on, a launched rank that dies ends all others and this process, with exit code 1."""
    if ranks:
        for thread in threading.enumerate():  # Lightning's own watch would kill this process before it can say why
            if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
                thread._child_processes = []
        threading.Thread(target=_watch_ranks, args=(ranks,), daemon=True).start()


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
    """After another rank was lost: give whoever watches the time to name it, which ends this process."""
    if ranks or launched():
        time.sleep(2 * GRACE)


def _watch_ranks(ranks: Ranks) -> None:
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in ranks]
        if all(code == 0 for code in codes):
            return
        failed = next((i for i, code in enumerate(codes) if code), None)
        if failed is None:
            continue
        time.sleep(GRACE)
        code = int(codes[failed] or 0)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        _leave(f"rank {failed + 1} (process {ranks[failed].pid}) {how}; the run ends", ranks)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _leave(f"rank {os.environ.get('LOCAL_RANK')}: the process that launched it ({parent}) has died; it ends too")


def _leave(line: str, ranks: Ranks = ()) -> None:
    os.write(2, f"sppo: {line}\n".encode())
    for process in ranks:
        process.kill()
    os._exit(1)
