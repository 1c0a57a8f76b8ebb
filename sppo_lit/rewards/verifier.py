"""A pool of worker processes that judge answers, each answer under a deadline, each process under a memory limit.

Alternatives considered: `multiprocessing` (fork copies a process that holds CUDA and threads; spawn and forkserver
import the parent's ``__main__``, here the command line and with it torch), `concurrent.futures` and pebble, which build
on it (same start methods; pickles come from a process that reads model text; pebble adds a thread and a manager).
Subprocesses with one pipe each way avoid all of that: they start in about 50 ms, import only `sppo_lit.rewards`, and
are ended by the kernel's timer or when the pipe closes. POSIX only, as is training.

No thread is started in the calling process: `score` runs a selector loop in whatever thread calls it.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.rewards.accepted import AcceptedLog
from sppo_lit.rewards.custom import SETTING, reward_names
from sppo_lit.rewards.process import Worker
from sppo_lit.rewards.worker import pack
from sppo_lit.types import Gold, Verdict
from sppo_lit.utils.cores import usable_cores
from sppo_lit.utils.objects import check_object

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds between a worker's own timer and a kill by the parent
_START = 60.0  # seconds a worker may take to start or to load sympy
_STARTS = 3  # consecutive workers that may die before they are ready
_MIN_MEMORY = 512  # MiB; sympy does not load in less
_CHUNK = 64  # rows sent at once, at most

Row = tuple[str, Gold, bool]


def default_workers() -> int:
    """One per core that this process may use, shared among the ranks of this machine; at least 1, at most 64."""
    of = next((os.environ[name] for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE") if name in os.environ), "1")
    return max(1, min(64, usable_cores() // max(1, int(of))))


def _stop_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().stop()


class VerifierPool:
    """Judges responses in worker processes; implements `sppo_lit.types.Verifier`.

    Workers start on first use and are kept. May be used from any thread (calls are serialized) and as a context
    manager. In a forked child the pool starts workers of its own.

    Args:
        workers: number of processes; None for one per core, shared among the ranks of this machine.
        deadline: seconds for each answer; then its computation is interrupted or, where that fails, its worker killed
            and replaced. The reason is ``timeout``.
        memory_mb: address space of a worker in MiB; 0 for no limit (custom rewards that load models need it).
        functions: custom rewards, functions ``f(response, gold) -> float`` named as ``package.module:function`` or
            ``path/to/file.py:function``.
        audit: file to which a sample of accepted answers is appended; see `AcceptedLog`.

    Attributes:
        errors: how often each custom reward raised, returned no usable number, or ran out of time.

    Raises:
        InputError: a custom reward cannot be found, workers cannot start, or the audit's file cannot be written.
    """

    def __init__(
        self,
        workers: int | None = None,
        deadline: float = 5.0,
        memory_mb: int = 2048,
        functions: Sequence[str] = (),
        audit: str | None = None,
    ) -> None:
        if (workers is not None and workers < 1) or deadline <= 0 or not (memory_mb == 0 or memory_mb >= _MIN_MEMORY):
            raise InputError(
                f"verifier: workers ({workers}) must be at least 1, deadline ({deadline}) above 0, and memory_mb "
                f"({memory_mb}) 0 for no limit or at least {_MIN_MEMORY}"
            )
        for spec in functions:
            check_object(spec, SETTING)
        self._size, self.deadline = workers, float(deadline)
        self.functions = list(functions)
        self.settings = {"deadline": self.deadline, "memory_mb": memory_mb, "functions": self.functions}
        self.errors: Counter[str] = Counter()
        self.accepted = AcceptedLog(audit) if audit else None
        self._lock = threading.Lock()
        self._reset()

    @property
    def size(self) -> int:
        """Number of workers; known when the ranks of this machine have been launched."""
        return default_workers() if self._size is None else self._size

    def _reset(self) -> None:
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self._failed_starts = 0
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The pool may be used again: new ones start."""
        with self._lock:
            _stop_all(self._workers, self._owner)

    def score(
        self, responses: Sequence[str], golds: Sequence[Gold], finished: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """Judge responses: one verdict each, in order; custom rewards are not run.

        Args:
            responses: decoded responses, prompts not included.
            golds: gold answer of each, without box, or what the scorer of its task needs.
            finished: False where a response was truncated; all True if not given.

        Raises:
            ValueError: arguments of unequal lengths.
        """
        verdicts: list[Verdict] = self._run(responses, golds, finished, custom=False)
        if self.accepted:
            self.accepted.add([gold if isinstance(gold, str) else gold.answer for gold in golds], verdicts)
        return verdicts

    def custom(self, responses: Sequence[str], golds: Sequence[str]) -> dict[str, list[float]]:
        """Run the custom rewards: the unweighted values of each by its name, one per response, in order.

        Where a reward fails its value is NaN and it is counted in `errors`; its first failure is logged with the row.

        Args:
            responses: decoded responses, prompts not included.
            golds: gold answer of each, without box.

        Raises:
            ValueError: arguments of unequal lengths.
        """
        if not self.functions:
            return {}
        rows = self._run(responses, golds, None, custom=True)
        return {spec: [row[i] for row in rows] for i, spec in enumerate(self.functions)}

    def _run(
        self, responses: Sequence[str], golds: Sequence[Gold], finished: Sequence[bool] | None, custom: bool
    ) -> list[Any]:
        """One verdict per response, or the values of all custom rewards per response."""
        done = [True] * len(responses) if finished is None else [bool(f) for f in finished]
        if not len(responses) == len(golds) == len(done):
            raise ValueError(f"{len(responses)} responses, {len(golds)} golds, {len(done)} finished flags")
        rows = list(zip(responses, golds, done, strict=True))
        with self._lock:
            if os.getpid() != self._owner:
                self._reset()
            run = _Run(self, rows, custom)
            try:
                run.loop()
            except BaseException:  # e.g. KeyboardInterrupt: these workers are busy, the next call needs new ones
                _stop_all(self._workers, self._owner)
                raise
        return run.results

    def _replace(self, worker: Worker) -> None:
        worker.stop()
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts >= _STARTS:
            raise InputError(
                f"verifier: {_STARTS} worker processes in a row ended before they were ready; see the output of "
                f"`{sys.executable} -m sppo_lit.rewards.worker </dev/null`"
            )
        self._workers[self._workers.index(worker)] = Worker(self.settings)


class _Run:
    """One call of `score` or `custom`: hands out rows, receives results, replaces workers that die."""

    def __init__(self, pool: VerifierPool, rows: list[Row], custom: bool) -> None:
        self.pool, self.rows, self.custom = pool, rows, custom
        self.deadline = pool.deadline
        self.results: list[Any] = [None] * len(rows)
        self.todo = deque(range(len(rows)))
        self.alone: set[int] = set()  # rows to send alone: their worker died, and any of them may be the cause
        self.chunk = max(1, min(_CHUNK, len(rows) // (4 * pool.size)))

    def loop(self) -> None:
        """Run until every row has its result."""
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
                    messages, open_ = worker.receive()
                    alive = sent and open_
                    for message in messages:
                        self.receive(worker, message)
                late = time.monotonic() > worker.kill_at
                if not alive or (late and worker.rows):
                    self.replace_lost(worker, late)

    def hand_out(self, worker: Worker) -> None:
        """Send the next chunk to an idle worker."""
        rows = [self.todo.popleft()]
        while self.todo and len(rows) < self.chunk and not self.alone & {rows[0], self.todo[0]}:
            rows.append(self.todo.popleft())
        worker.rows.extend(rows)
        worker.outbox += pack({"rows": [self.rows[i] for i in rows], "custom": self.custom})
        worker.idle = worker.slow = False
        worker.kill_at = time.monotonic() + _START + self.deadline
        worker.send()

    def wait(self, busy: list[Worker]) -> set[Worker]:
        """Workers with pipes ready to read or write; waits for them until the first deadline of a worker."""
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                if worker.outbox:
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
            timeout = min(w.kill_at for w in busy) - time.monotonic()
            return {key.data for key, _ in selector.select(max(0.0, timeout))}

    def receive(self, worker: Worker, message: dict[str, Any]) -> None:
        """Store the results in a worker's message and update its state.

        Raises:
            InputError: the worker could not import a custom reward.
        """
        if error := message.get("error"):
            raise InputError(error)
        worker.ready = worker.ready or bool(message.get("ready"))
        for result in message["done"]:
            self.settle(worker.rows.popleft(), result)
        if not message.get("ready"):
            worker.idle, worker.slow = bool(message.get("idle")), bool(message.get("slow"))
        worker.kill_at = time.monotonic() + self.deadline + (_GRACE if worker.slow else _START)

    def settle(self, row: int, result: list[Any]) -> None:
        """Store a row's result: the fields of a `Verdict`, or (value, error) of each custom reward."""
        if not self.custom:
            self.results[row] = Verdict(*result)
            return
        self.results[row] = [math.nan if error else value for value, error in result]
        for spec, (_, error) in zip(self.pool.functions, result, strict=True):
            if error:
                self.report_failure(spec, row, error)

    def report_failure(self, spec: str, row: int, error: str) -> None:
        """Count a failure of a custom reward, and log its first one."""
        self.pool.errors[spec] += 1
        if self.pool.errors[spec] == 1:
            response, gold, _ = self.rows[row]
            logger.warning(
                "reward %s failed on row %d (gold %r, response ends %r): %s. It counts 0 there; failures are counted "
                "in rollout/reward_failures/%s, further ones are not shown.",
                spec, row, str(gold)[:100], response[-100:], error, reward_names(self.pool.functions)[spec]
            )  # fmt: skip

    def replace_lost(self, worker: Worker, late: bool) -> None:
        """Replace a dead or late worker, settle the row in progress and return its other rows to the queue."""
        self.pool._replace(worker)
        late = late or worker.process.returncode == -signal.SIGPROF
        if not worker.rows:
            return
        if worker.ready and (worker.slow or len(worker.rows) == 1):
            row = worker.rows.popleft()
            if self.custom:
                error = f"no result within {self.deadline} s" if late else "the process died"
                self.settle(row, [(0.0, error)] * len(self.pool.functions))
            else:
                self.settle(row, [0.0, "timeout" if late else "unparsable", None, self.deadline])
        elif worker.ready:
            self.alone.update(worker.rows)
        self.todo.extendleft(reversed(worker.rows))
