"""A callback for the tests: what each rank really allocates while sampling and while updating."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils._python_dispatch import _disable_current_modes

from sppo_lit.distributed import host_memory
from sppo_lit.doctor.tracking import StorageTracker


class TrackedMemory(pl.Callback):
    """Writes the peaks of the last iteration to `<folder>/memory<r>.json`, without what waits in the host's memory."""

    def __init__(self, folder: str) -> None:
        self.folder, self.tracker = Path(folder), StorageTracker()

    def follow_all(self, pl_module: Any) -> None:
        copy = host_memory._copy

        def uncounted(storage: Any) -> Any:  # on a CPU, the device's memory is the host's
            with _disable_current_modes():
                return copy(storage)

        host_memory._copy = uncounted
        self.tracker.__enter__()
        self.tracker.add([*pl_module.parameters(), *pl_module.buffers()])
        for method in ("prepare", "draw"):  # the decode copy is filled before the first draw
            self.follow(pl_module.sampler, method, "sampling")
        for updater in (pl_module.policy_updater, pl_module.critic_updater):
            self.follow(updater, "step", "updating")

    def follow(self, part: Any, method: str, phase: str) -> None:
        original = getattr(part, method)

        @wraps(original)
        def followed(*args: Any, **kwargs: Any) -> Any:
            with self.tracker.phase(phase):
                return original(*args, **kwargs)

        setattr(part, method, followed)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.iteration == 0:
            self.follow_all(pl_module)
        self.tracker.peaks.clear()  # in the first iteration there are no moments yet

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.tracker.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"memory{trainer.global_rank}.json").write_text(json.dumps(self.tracker.peaks))
