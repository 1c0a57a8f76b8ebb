"""The worker process: reads chunks of answers from stdin, writes a verdict for each to stdout.

Messages in both directions are JSON with a 4-byte length prefix; nothing is unpickled from a process that reads model
text. A deadline has two stages. At the deadline an exception is raised in the computation, which ends most of them: the
worker stays, with sympy loaded. After another quarter of a second of processor time the kernel ends the process by a
signal that Python does not handle, and so ends even a computation that never returns to the interpreter, whether or not
the parent lives. Torch is never imported, sympy only when an answer needs it. Before a step that may take long the
finished verdicts are sent, so that the death of the process costs one answer.
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
    """Encode `message` as JSON with a length prefix (ASCII, so lone surrogates and null bytes are preserved)."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def _read(fd: int, size: int, parent: int) -> bytes:
    """Read exactly `size` bytes; exit when the pipe is closed or the parent has ended."""
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
    """Limit the address space of this process to `megabytes` MiB where supported (0: no limit); write no core files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if megabytes > 0:
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


class DeadlineExceeded(BaseException):
    """Raised in a computation at its deadline; not an `Exception`, so that no handler in between catches it."""


class _Deadline:
    """A context manager that raises DeadlineExceeded in its body, or ends the process, after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.armed = seconds, False
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def _on_alarm(self, *_: Any) -> None:
        if self.armed:
            raise DeadlineExceeded

    def __enter__(self) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_PROF, self.seconds + 0.25)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, 0.1)  # repeated, in case something catches the first

    def __exit__(self, *_: object) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


class _Judge:
    """Judges chunks of rows under the settings sent by the parent."""

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

    def chunk(self, rows: list[tuple[str, Any, bool]], custom: bool) -> None:
        for response, gold, finished in rows:
            if custom:
                self.flush(slow=True)
                self.done.append(self.custom(response, gold))
            else:
                start = time.perf_counter()
                verdict = self.verdict(response, gold, finished)
                reward, reason, answer, rule = verdict
                self.done.append([reward, reason, answer, time.perf_counter() - start, rule])
        self.flush(idle=True)

    def custom(self, response: str, gold: str) -> list[tuple[float, str]]:
        """(value, error) of each custom reward."""
        from sppo_lit.rewards.custom import run_reward

        values: list[tuple[float, str]] = []
        try:
            with self.deadline:
                for function in self.functions:
                    values.append(run_reward(function, response, gold))
        except DeadlineExceeded:
            failed = (0.0, f"no result within {self.deadline.seconds} s")
            values += [failed] * (len(self.functions) - len(values))
        return values

    def verdict(self, response: str, gold: str | list[Any], finished: bool) -> tuple[float, str, str | None, str]:
        """Reward, reason, answer and rule; a list is a `TaskGold`."""
        from sppo_lit.rewards.math import answers

        try:
            if not isinstance(gold, str):
                return self.scored(response, gold, finished)
            with self.deadline:
                quick = answers.judge_exact(response, gold, finished)
            if quick is not None:
                return quick
            answers.load_symbolic()
            self.flush(slow=True)
            with self.deadline:
                return answers.judge(response, gold, finished)
        except DeadlineExceeded:
            return 0.0, "timeout", answers.extract_answer(response), ""
        except MemoryError:  # a process at its memory limit is not worth keeping
            self.done.append([0.0, "unparsable", None, 0.0, ""])
            self.flush()
            os._exit(1)
        except Exception:
            return 0.0, "unparsable", None, ""

    def scored(self, response: str, gold: list[Any], finished: bool) -> tuple[float, str, str | None, str]:
        """The same by the scorer of the problem's task."""
        from sppo_lit.rewards import gym
        from sppo_lit.types import TaskGold

        task = TaskGold(*gold)
        gym.load_scorer(task)
        self.flush(slow=True)
        with self.deadline:
            return gym.judge(response, task, finished)


def main() -> None:
    """Answer messages until stdin closes."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group; the parent decides when to stop
        signal.signal(signum, signal.SIG_IGN)
    parent = os.getppid()
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what a reward prints must not mix with the verdicts
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
