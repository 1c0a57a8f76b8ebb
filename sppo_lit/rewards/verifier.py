"""A pool of worker processes that judge answers, each under a deadline and a memory limit.

Considered: `multiprocessing` (fork copies a process that holds CUDA and threads; spawn and forkserver import the
parent's ``__main__``, here the command line and with it torch), `concurrent.futures` and pebble on top of it (same
start methods; pickles travel from a process that reads model text). Plain subprocesses with a pipe each need neither:
they start in about 50 ms, import only `sppo_lit.rewards`, and die by the kernel's timer or when the pipe closes.

No thread is started in the asking process: `score` runs a selector loop in the thread that calls it and may be called
from any.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from sppo_lit.rewards.worker import HEADER, pack
from sppo_lit.types import Verdict

_KEEP = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_GRACE = 1.0  # seconds between the worker's own timer and a kill from outside
_START = 60.0  # seconds a worker may take to start or to load sympy


def worker_environment() -> dict[str, str]:
    """Environment of a worker: a short list of harmless variables, no credentials."""
    env = {name: os.environ[name] for name in _KEEP if name in os.environ}
    path = [os.path.abspath(p or os.getcwd()) for p in sys.path]
    return {**env, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


class _Worker:
    """One process, the rows it has been given and not yet answered, and the bytes in flight both ways."""

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
        self.outbox = bytearray(pack(settings))
        self.inbox = bytearray()
        self.rows: deque[int] = deque()
        self.idle = True
        self.kill_at = 0.0

    def send(self) -> bool:
        """Write what the pipe takes; False if the process is gone."""
        try:
            while self.outbox:
                del self.outbox[: os.write(self.stdin, self.outbox[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """(whole messages that have arrived, whether the process is still there)."""
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

    def end(self) -> None:
        """Kill and reap; safe to call twice."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().end()


class VerifierPool:
    """Judges responses in worker processes; implements `sppo_lit.types.Verifier`.

    Workers start on first use and are kept. May be used from any thread (callers take turns) and as a context
    manager. In a forked child the pool starts workers of its own.

    Args:
        workers: number of processes.
        deadline: seconds for each answer; then its worker is killed and replaced, the verdict is `timeout`.
        memory_mb: address space of a worker in MiB; 0 for no limit.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_mb: int = 2048) -> None:
        self.size = max(1, workers)
        self.settings = {"deadline": deadline, "memory_mb": memory_mb}
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The pool may be used again: new ones start."""
        with self._lock:
            _end_all(self._workers, self._owner)

    def score(
        self, responses: Sequence[str], golds: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """One verdict per response, in order.

        Args:
            responses: decoded responses, prompts not included.
            golds: gold answer of each.
            finished: False where a response was truncated; all True if not given.
        """
        done = [True] * len(responses) if finished is None else [bool(f) for f in finished]
        if not len(responses) == len(golds) == len(done):
            raise ValueError(f"{len(responses)} responses, {len(golds)} golds, {len(done)} finished flags")
        items = list(zip(responses, golds, done, strict=True))
        with self._lock:
            if os.getpid() != self._owner:
                self._reset()
            try:
                return self._run(items)
            except BaseException:  # e.g. KeyboardInterrupt: workers are mid-chunk, start over next time
                _end_all(self._workers, self._owner)
                raise

    def _run(self, items: list[tuple[str, str, bool]]) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(items)
        todo = deque(range(len(items)))
        chunk = max(1, min(64, len(items) // (4 * self.size)))
        deadline = self.settings["deadline"]
        while len(self._workers) < min(self.size, len(items)):
            self._workers.append(_Worker(self.settings))
        while todo or any(w.rows for w in self._workers):
            now = time.monotonic()
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    if worker.idle and todo:
                        rows = [todo.popleft() for _ in range(min(chunk, len(todo)))]
                        worker.rows.extend(rows)
                        worker.outbox += pack([items[i] for i in rows])
                        worker.idle, worker.kill_at = False, now + _START
                        worker.send()
                    if worker.rows:
                        events = selectors.EVENT_READ
                        selector.register(worker.stdout, events, worker)
                        if worker.outbox:
                            selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
                busy = [w for w in self._workers if w.rows]
                ready = {key.data for key, _ in selector.select(max(0.0, min(w.kill_at for w in busy) - now))}
            for worker in busy:
                alive = True
                if worker in ready:
                    alive = worker.send()
                    messages, there = worker.receive()
                    alive = alive and there
                    for message in messages:
                        for reward, reason, answer, seconds in message["done"]:
                            verdicts[worker.rows.popleft()] = Verdict(reward, reason, answer, seconds)
                        worker.idle = bool(message.get("idle"))
                        worker.kill_at = time.monotonic() + (deadline + _GRACE if message.get("slow") else _START)
                if worker.rows and (not alive or time.monotonic() > worker.kill_at):
                    worker.end()
                    late = alive or worker.process.returncode == -getattr(signal, "SIGALRM", 0)
                    verdicts[worker.rows.popleft()] = Verdict(0.0, "timeout" if late else "unparsable", None, deadline)
                    todo.extendleft(reversed(worker.rows))
                    self._workers[self._workers.index(worker)] = _Worker(self.settings)
                elif not alive:
                    worker.end()
                    self._workers[self._workers.index(worker)] = _Worker(self.settings)
        return [v if v is not None else Verdict(0.0, "unparsable") for v in verdicts]
