"""Time and peak memory of each phase of an iteration, and progress of the current phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from sppo_lit.distributed.collectives import ranks, reduced
from sppo_lit.training.protocols import PhaseListener, callbacks_of
from sppo_lit.utils.peak_memory import peak_mib, reset_peak

Listener = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the phase, its finished parts, total parts, and further facts."""

WAIT, CRITIC = "wait", "critic"
"""Phases nested in others, whose seconds leave out theirs: waiting for other ranks, the critic's steps of an update."""


class PhaseTimer:
    """Seconds and peak memory of each phase of the running iteration.

    Args:
        device: device whose memory is measured.
        listeners: called with the progress of a phase.

    Attributes:
        seconds: wall-clock time of each phase on this rank, without that of phases nested in it.
    """

    def __init__(self, device: torch.device, listeners: Sequence[Listener] = ()) -> None:
        self.seconds: dict[str, float] = {}
        self._nested = 0.0  # seconds of all finished phases
        self._memory: dict[str, float] = {}  # MiB
        self._device, self._listeners = device, listeners

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the block's seconds and peak memory to `phase`; the memory of a nested phase counts for the outer one."""
        measured = phase not in (WAIT, CRITIC) and reset_peak(self._device)
        start, before = time.perf_counter(), self._nested
        yield
        if measured:
            self._memory[phase] = max(self._memory.get(phase, 0.0), peak_mib(self._device))
        elapsed = time.perf_counter() - start
        self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed - (self._nested - before)
        self._nested = before + elapsed

    def report(self, phase: str, done: int, total: int, **facts: float) -> None:
        """Report the progress of `phase` to all listeners."""
        for listener in self._listeners:
            listener(phase, done, total, facts)

    def end_iteration(self) -> dict[str, float]:
        """Start the next iteration; returns the metrics of this one: mean seconds over ranks, largest peak in MiB."""
        spent = [*self.seconds.values(), sum(self.seconds.values())]
        seconds = reduced(torch.tensor(spent, dtype=torch.float32, device=self._device) / ranks()).tolist()
        peaks = torch.tensor(list(self._memory.values()), dtype=torch.float32, device=self._device)
        largest = reduced(peaks, dist.ReduceOp.MAX).tolist() if self._memory else []
        names = [*(f"time/{phase}" for phase in (*self.seconds, "iteration")), *(f"memory/{p}" for p in self._memory)]
        self.seconds, self._memory = {}, {}
        return dict(zip(names, [*seconds, *largest], strict=True))


def listeners(trainer: pl.Trainer) -> list[Listener]:
    """Listeners for the trainer's callbacks that have `on_phase`."""

    def notify(callback: PhaseListener, phase: str, done: int, total: int, facts: Mapping[str, float]) -> None:
        callback.on_phase(trainer, trainer.lightning_module, phase, done, total, facts)

    return [partial(notify, callback) for callback in callbacks_of(trainer) if isinstance(callback, PhaseListener)]
