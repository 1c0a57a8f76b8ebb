"""The parent's side of a worker process: its pipes, its environment, the rows it works on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from typing import Any

from sppo_lit.rewards.worker import HEADER, pack

_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV")


def worker_environment() -> dict[str, str]:
    """Environment variables of a worker: a short list of harmless ones and the import path, no credentials."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = [os.path.abspath(p) for p in sys.path if p] + [os.getcwd()]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return {**env, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


class Worker:
    """A process, the rows sent to it and not yet answered, and buffers for both pipes.

    Args:
        settings: sent to the process first: ``deadline`` in seconds, ``memory_mb``, ``functions``.

    Attributes:
        rows: indices of the unanswered rows, the one in progress first.
        ready: the process has started and imported its modules.
        idle: it waits for a chunk of rows.
        slow: it has announced that the row in progress may take long.
        kill_at: monotonic time, in seconds, at which it is killed unless a message arrives before.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo_lit.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.outbox, self.inbox = bytearray(pack(settings)), bytearray()
        self.rows: deque[int] = deque()
        self.ready, self.idle, self.slow = False, True, False
        self.kill_at = 0.0

    def send(self) -> bool:
        """Write as much of the outbox as the pipe accepts; False if the process has ended."""
        try:
            while self.outbox:
                del self.outbox[: os.write(self.stdin, self.outbox[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Complete messages that have arrived, and whether the pipe is still open."""
        alive = True
        try:
            while piece := os.read(self.stdout, 1 << 16):
                self.inbox += piece
            alive = False
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        messages = []
        while len(self.inbox) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self.inbox)[0]
            if len(self.inbox) < end:
                break
            messages.append(json.loads(self.inbox[HEADER.size : end]))
            del self.inbox[:end]
        return messages, alive

    def stop(self) -> None:
        """Kill the process and wait for it; may be called twice."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
