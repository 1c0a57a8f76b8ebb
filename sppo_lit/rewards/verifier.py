"""A pool of worker processes that judge answers, each answer under a deadline, each process under a memory limit.

Considered: `multiprocessing` (fork copies a process that holds CUDA and threads; spawn and forkserver import the
parent's ``__main__``, here the command line and with it torch), `concurrent.futures` and pebble on top of it (the same
start methods; pickles travel from a process that reads model text; pebble adds a thread and a manager of its own).
Plain subprocesses with a pipe each need none of that: they start in about 50 ms, import only `sppo_lit.rewards`, and
die by the kernel's timer or when the pipe closes. POSIX only, as is training.

No thread is started in the asking process: `score` runs a selector loop in the thread that calls it, which may be any.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.rewards.custom import ANSWER, check_spec, weigh
from sppo_lit.rewards.process import Worker
from sppo_lit.rewards.worker import pack
from sppo_lit.types import Verdict

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds between a worker's own timer and a kill from outside
_START = 60.0  # seconds a worker may take to start or to load sympy
_STARTS = 3  # workers in a row that may die before they are ready
_LEAST_MEMORY = 512  # MiB; less does not load sympy
_CHUNK = 64  # most rows sent at once

Row = tuple[str, str, bool]


def _end_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().end()


class VerifierPool:
    """Judges responses in worker processes; implements `sppo_lit.types.Verifier`.

    Workers start on first use and are kept. May be used from any thread (callers take turns) and as a context
    manager. In a forked child the pool starts workers of its own.

    Args:
        workers: number of processes.
        deadline: seconds for each answer; then its computation is broken off, or, if it cannot be, its worker killed
            and replaced. The reason is ``timeout``.
        memory_mb: address space of a worker in MiB; 0 for no limit (custom rewards that load models need it).
        rewards: weights of the policy's reward (`score_shaped`) by name: ``answer`` for the verdict itself,
            ``package.module:function`` or ``path/to/file.py:function`` for functions ``f(response, gold) -> float``.

    Attributes:
        errors: how often each custom reward raised, returned no finite number, or ran out of time.

    Raises:
        InputError: a custom reward cannot be found, or workers cannot start.
    """

    def __init__(
        self,
        workers: int = 2,
        deadline: float = 5.0,
        memory_mb: int = 2048,
        rewards: Mapping[str, float] | None = None,
    ) -> None:
        if workers < 1 or deadline <= 0 or not (memory_mb == 0 or memory_mb >= _LEAST_MEMORY):
            raise InputError(
                f"verifier: workers ({workers}) must be at least 1, deadline ({deadline}) above 0, and memory_mb "
                f"({memory_mb}) 0 for no limit or at least {_LEAST_MEMORY}"
            )
        self.size = workers
        self.weights = dict(rewards or {ANSWER: 1.0})
        for spec in self.weights:
            check_spec(spec)
        self.functions = [spec for spec in self.weights if spec != ANSWER]
        self.settings = {"deadline": float(deadline), "memory_mb": memory_mb, "functions": self.functions}
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self._failed_starts = 0
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
        """One verdict per response, in order; custom rewards are not run.

        Args:
            responses: decoded responses, prompts not included.
            golds: gold answer of each, without box.
            finished: False where a response was truncated; all True if not given.
        """
        return self._judge(responses, golds, finished, shaped=False)[0]

    def score_shaped(
        self, responses: Sequence[str], golds: Sequence[str], finished: Sequence[bool] | None = None
    ) -> tuple[list[Verdict], list[float]]:
        """As `score`, with what the policy is paid: the weighted sum of verdict and custom rewards, per response.

        The critic's label is `Verdict.reward`, which no custom reward changes. A custom reward that raises counts 0;
        its first exception is logged with the row.
        """
        return self._judge(responses, golds, finished, shaped=True)

    def custom(self, responses: Sequence[str], golds: Sequence[str]) -> list[float]:
        """Weighted sum of the custom rewards of each response, nothing being judged; failures as in `score_shaped`."""
        if not self.functions:
            return [0.0] * len(responses)
        return self._judge(responses, golds, None, shaped=True, verdicts=False)[1]

    def _judge(
        self,
        responses: Sequence[str],
        golds: Sequence[str],
        finished: Sequence[bool] | None,
        shaped: bool,
        verdicts: bool = True,
    ) -> tuple[list[Verdict], list[float]]:
        done = [True] * len(responses) if finished is None else [bool(f) for f in finished]
        if not len(responses) == len(golds) == len(done):
            raise ValueError(f"{len(responses)} responses, {len(golds)} golds, {len(done)} finished flags")
        rows = list(zip(responses, golds, done, strict=True))
        with self._lock:
            if os.getpid() != self._owner:
                self._reset()
            run = _Run(self, rows, shaped, verdicts)
            try:
                run.loop()
            except BaseException:  # e.g. KeyboardInterrupt: workers are amid a chunk, start over next time
                _end_all(self._workers, self._owner)
                raise
        judged = [v for v in run.verdicts if v is not None]
        paid = [weigh(self.weights, v.reward, run.extra.get(i, {})) for i, v in enumerate(judged)]
        return judged, paid

    def _replace(self, worker: Worker) -> None:
        worker.end()
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts >= _STARTS:
            raise InputError(
                f"verifier: {_STARTS} worker processes in a row ended before they were ready; see what "
                f"`{sys.executable} -m sppo_lit.rewards.worker </dev/null` says"
            )
        self._workers[self._workers.index(worker)] = Worker(self.settings)


class _Run:
    """One call of `score`: hands out rows, takes in verdicts, deals with workers that die."""

    def __init__(self, pool: VerifierPool, rows: list[Row], shaped: bool, judged: bool) -> None:
        self.pool, self.rows, self.shaped, self.judged = pool, rows, shaped and bool(pool.functions), judged
        self.deadline: float = pool.settings["deadline"]  # type: ignore[assignment]
        self.verdicts: list[Verdict | None] = [None] * len(rows)
        self.extra: dict[int, dict[str, float]] = {}
        self.todo = deque(range(len(rows)))
        self.alone: set[int] = set()  # rows that were with a worker that died for no known row
        self.chunk = max(1, min(_CHUNK, len(rows) // (4 * pool.size)))

    def loop(self) -> None:
        workers = self.pool._workers
        while len(workers) < min(self.pool.size, len(self.rows)):
            workers.append(Worker(self.pool.settings))
        while self.todo or any(w.rows for w in workers):
            for worker in workers:
                if worker.idle and self.todo:
                    self.hand_out(worker)
            busy = [w for w in workers if w.rows]
            ready = self.wait(busy)
            for worker in busy:
                alive = True
                if worker in ready:
                    sent = worker.send()
                    messages, there = worker.receive()
                    alive = sent and there
                    for message in messages:
                        self.take_in(worker, message)
                late = time.monotonic() > worker.kill_at
                if not alive or (late and worker.rows):
                    self.bury(worker, late)

    def hand_out(self, worker: Worker) -> None:
        rows = [self.todo.popleft()]
        while self.todo and len(rows) < self.chunk and not self.alone & {rows[0], self.todo[0]}:
            rows.append(self.todo.popleft())
        worker.rows.extend(rows)
        worker.outbox += pack({"rows": [self.rows[i] for i in rows], "shaped": self.shaped, "judged": self.judged})
        worker.idle = worker.slow = False
        worker.kill_at = time.monotonic() + _START + self.deadline
        worker.send()

    def wait(self, busy: list[Worker]) -> set[Worker]:
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                if worker.outbox:
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
            timeout = min(w.kill_at for w in busy) - time.monotonic()
            return {key.data for key, _ in selector.select(max(0.0, timeout))}

    def take_in(self, worker: Worker, message: dict[str, Any]) -> None:
        if error := message.get("error"):
            raise InputError(error)
        worker.ready = worker.ready or bool(message.get("ready"))
        for reward, reason, answer, seconds, extra in message["done"]:
            row = worker.rows.popleft()
            self.verdicts[row] = Verdict(reward, reason, answer, seconds)
            for spec, (value, problem) in zip(self.pool.functions, extra, strict=False):
                self.extra.setdefault(row, {})[spec] = value
                if problem:
                    self.complain(spec, row, problem)
        if not message.get("ready"):
            worker.idle, worker.slow = bool(message.get("idle")), bool(message.get("slow"))
            worker.partial = message.get("partial")
        worker.kill_at = time.monotonic() + self.deadline + (_GRACE if worker.slow else _START)

    def complain(self, spec: str, row: int, problem: str) -> None:
        self.pool.errors[spec] += 1
        if self.pool.errors[spec] == 1:
            response, gold, _ = self.rows[row]
            logger.warning(
                "reward %s failed on row %d (gold %r, response ends %r): %s. It counts 0 there; further failures are "
                "counted, not shown.", spec, row, gold[:100], response[-100:], problem
            )  # fmt: skip

    def bury(self, worker: Worker, late: bool) -> None:
        """Settle the row a dead or late worker was at, give its other rows back, replace it."""
        self.pool._replace(worker)
        late = late or worker.process.returncode == -signal.SIGPROF
        if not worker.rows:
            return
        if worker.ready and (worker.slow or len(worker.rows) == 1):
            row = worker.rows.popleft()
            if worker.partial is not None:  # judged; only a custom reward did not come to an end
                self.verdicts[row] = Verdict(*worker.partial)
                for spec in self.pool.functions:
                    self.complain(spec, row, f"no result within {self.deadline} s" if late else "the process died")
            else:
                self.verdicts[row] = Verdict(0.0, "timeout" if late else "unparsable", None, self.deadline)
        elif worker.ready:
            self.alone.update(worker.rows)
        self.todo.extendleft(reversed(worker.rows))
