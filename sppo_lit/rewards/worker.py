"""The process that judges: reads chunks of answers from stdin, writes a verdict per answer to stdout.

Messages are JSON behind a 4-byte length, both ways; nothing is unpickled from a process that reads model text.
A deadline has two parts. At the deadline an exception is raised in the computation, which most hanging answers heed:
the worker stays, with sympy loaded. A quarter of a second of processor time later the kernel ends the process by a
signal that Python does not handle, so even a computation that never returns to the interpreter, with or without a
living parent. Torch is never imported, sympy only when an answer needs it. Before anything that may take long the
finished verdicts are sent, so that a death costs one answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import sys
import time
from typing import Any

HEADER = struct.Struct(">I")


def pack(message: Any) -> bytes:
    """`message` as length-prefixed JSON (ASCII, so lone surrogates and null bytes travel too)."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def _read(fd: int, size: int, parent: int) -> bytes:
    """Exactly `size` bytes; exits when the pipe is closed or the parent is gone."""
    data = bytearray()
    while len(data) < size:
        while not select.select([fd], [], [], 5.0)[0]:
            if os.getppid() != parent:
                os._exit(0)
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(0)
        data += piece
    return bytes(data)


def _receive(fd: int, parent: int) -> Any:
    return json.loads(_read(fd, HEADER.unpack(_read(fd, HEADER.size, parent))[0], parent))


def _send(fd: int, message: Any) -> None:
    view = memoryview(pack(message))
    while view:
        view = view[os.write(fd, view) :]


def limit_memory(megabytes: int) -> None:
    """Cap the address space of this process (where the system supports it) and write no core files; 0: no cap."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if megabytes > 0:
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


class Late(BaseException):
    """Raised in a computation at its deadline; no `except Exception` on the way keeps it."""


class _Deadline:
    """``with deadline:`` raises Late in its body, or has the process ended, after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.armed = seconds, False
        signal.signal(signal.SIGALRM, self._ring)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def _ring(self, *_: Any) -> None:
        if self.armed:
            raise Late

    def __enter__(self) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_PROF, self.seconds + 0.25)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, 0.1)  # again, should something swallow the first

    def __exit__(self, *_: object) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Judge:
    """Judges the rows of one chunk after the other under the settings the parent sent."""

    def __init__(self, settings: dict[str, Any], sink: int) -> None:
        from sppo_lit.rewards.custom import load_reward
        from sppo_lit.rewards.math import answers  # noqa: F401 - loaded before the first answer is timed

        self.deadline = _Deadline(settings["deadline"])
        self.sink = sink
        self.functions = [load_reward(spec) for spec in settings["functions"]]
        self.done: list[Any] = []

    def flush(self, **more: Any) -> None:
        _send(self.sink, {"done": self.done, **more})
        self.done = []

    def chunk(self, rows: list[tuple[str, str, bool]], custom: bool) -> None:
        for response, gold, finished in rows:
            if custom:
                self.flush(slow=True)
                self.done.append(self.custom(response, gold))
            else:
                start = time.perf_counter()
                verdict = self.verdict(response, gold, finished)
                self.done.append([*verdict, time.perf_counter() - start])
        self.flush(idle=True)

    def custom(self, response: str, gold: str) -> list[tuple[float, str]]:
        """(value, error) of each custom reward."""
        from sppo_lit.rewards.custom import run_reward

        values: list[tuple[float, str]] = []
        try:
            with self.deadline:
                for function in self.functions:
                    values.append(run_reward(function, response, gold))
        except Late:
            late = (0.0, f"no result within {self.deadline.seconds} s")
            values += [late] * (len(self.functions) - len(values))
        return values

    def verdict(self, response: str, gold: str, finished: bool) -> tuple[Any, ...]:
        from sppo_lit.rewards.math import answers

        try:
            with self.deadline:
                quick = answers.judge_exact(response, gold, finished)
            if quick is not None:
                return quick
            answers.load_symbolic()
            self.flush(slow=True)
            with self.deadline:
                return answers.judge(response, gold, finished)
        except Late:
            return 0.0, "timeout", answers.extract_answer(response)
        except MemoryError:  # a heap at its limit is not worth keeping
            self.done.append([0.0, "unparsable", None, 0.0])
            self.flush()
            os._exit(1)
        except Exception:
            return 0.0, "unparsable", None


def main() -> None:
    """Serve until stdin closes."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent decides when it is over
        signal.signal(signum, signal.SIG_IGN)
    parent = os.getppid()
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # whatever a reward prints must not reach the verdicts
    settings = _receive(source, parent)
    limit_memory(settings["memory_mb"])
    try:
        judge = _Judge(settings, sink)
    except Exception as error:
        _send(sink, {"done": [], "error": str(error)})
        os._exit(1)
    judge.flush(ready=True)
    while True:
        message = _receive(source, parent)
        judge.chunk(message["rows"], message["custom"])


if __name__ == "__main__":
    sys.setrecursionlimit(3000)
    main()
