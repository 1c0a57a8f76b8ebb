"""The process that judges: reads chunks of answers from stdin, writes one verdict per answer to stdout.

Messages are JSON behind a 4-byte length, both ways; nothing is unpickled from a process that reads model text.
The worker's own clock is the kernel: before an answer that may take long it sets an interval timer whose signal is
not handled in Python, so that even a computation that never returns to the interpreter ends the process in time, with
or without a living parent. Torch is never imported, sympy only when an answer needs it.
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
        if hasattr(os, "getppid") and os.name == "posix":
            while not select.select([fd], [], [], 5.0)[0]:
                if os.getppid() != parent:
                    os._exit(0)
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            os._exit(0)
        data += piece
    return bytes(data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def limit_memory(megabytes: int) -> None:
    """Cap the address space of this process (where the system supports it); 0 means no cap."""
    if megabytes <= 0:
        return
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        size = megabytes << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Serve until stdin closes."""
    from sppo_lit.rewards import answers

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    parent = os.getppid()
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # whatever prints must not reach the verdicts
    settings = json.loads(_read(source, HEADER.unpack(_read(source, HEADER.size, parent))[0], parent))
    deadline = settings["deadline"]
    limit_memory(settings["memory_mb"])
    while True:
        chunk = json.loads(_read(source, HEADER.unpack(_read(source, HEADER.size, parent))[0], parent))
        done: list[list[Any]] = []
        for response, gold, finished in chunk:
            start = time.perf_counter()
            verdict = answers.judge_exact(response, gold, finished)
            if verdict is None:
                answers.load_symbolic()
                _write(sink, pack({"done": done, "slow": True}))
                done = []
                _alarm(deadline)
                start = time.perf_counter()
                exhausted = False
                try:
                    verdict = answers.judge(response, gold, finished)
                except MemoryError:
                    verdict, exhausted = (0.0, "unparsable", None), True
                _alarm(0)
                if exhausted:  # a heap at its limit is not worth keeping
                    _write(sink, pack({"done": [[*verdict, time.perf_counter() - start]]}))
                    os._exit(1)
            done.append([*verdict, time.perf_counter() - start])
        _write(sink, pack({"done": done, "idle": True}))


if __name__ == "__main__":
    sys.setrecursionlimit(3000)
    main()
