"""Checkpoints at iteration boundaries: last, previous and best, published atomically."""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from sppo_lit.distributed.checkpoints import ShardWriter, publish, whole_checkpoint
from sppo_lit.distributed.strategy import ShardedStrategy
from sppo_lit.errors import InputError, refuse
from sppo_lit.training.protocols import training_module
from sppo_lit.training.run_folder import is_trial
from sppo_lit.utils.console import console
from sppo_lit.utils.files import flush, free_bytes, remove


class IterationCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, the one before it as ``previous.ckpt``, and ``best.ckpt`` in ``<run>/checkpoints``.

    Best is by held-out accuracy; ``previous.ckpt`` is the fallback if ``last.ckpt`` is damaged.

    Saves at the end of the training epoch: resuming from a checkpoint saved at the end of validation would repeat the
    iteration. Each is written under a temporary name and then replaces the old one.

    Under `--strategy fsdp` checkpoints have distributed form: a folder to which every rank writes its shards while
    training goes on; the three names are then links to such folders. Both forms resume under any strategy.

    Args:
        every_n_iterations: how often ``last.ckpt`` is written; also after the last iteration.
        monitor: metric that decides on ``best.ckpt``, in iterations with an evaluation.
        mode: ``max`` or ``min``.
        dirpath: folder; ``<run>/checkpoints`` by default.
        save_weights_only: omit the optimizer states; such a checkpoint can be evaluated but not resumed.
        form: "sharded" for distributed form, "file" for one file, for which rank zero gathers everything; "auto" is
            sharded under `--strategy fsdp`.
        background: write sharded checkpoints while training goes on, from a copy of each rank's shards in CPU memory.

    Attributes:
        saved_iteration: iteration of ``last.ckpt``, or of the checkpoint that the run started from.

    Raises:
        InputError: `every_n_iterations` below 1 or an unknown mode. Not enough free disk space; checked before training
            starts and before each save. Or distributed form without sharded networks.
        OSError: on all ranks, if one could not write its part; at the next save or at the end.
    """

    def __init__(
        self,
        every_n_iterations: int = 1,
        monitor: str = "val/accuracy",
        mode: str = "max",
        dirpath: str | None = None,
        save_weights_only: bool = False,
        form: Literal["auto", "file", "sharded"] = "auto",
        background: bool = True,
    ) -> None:
        refuse(
            "checkpoint",
            every_n_iterations=(every_n_iterations, every_n_iterations >= 1, "at least 1; a run keeps its last one"),
            mode=(mode, mode in ("max", "min"), "max or min"),
            monitor=(repr(monitor), bool(monitor), "the name of a metric, such as val/accuracy"),
        )
        super().__init__(
            dirpath=dirpath,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_last=True,
            save_weights_only=save_weights_only,
            every_n_epochs=every_n_iterations,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.saved_iteration = 0
        self._boundary: dict[str, Any] = {}  # state of Lightning's loops at the last iteration boundary
        self._told = False  # that `monitor` is not logged
        self._within = False  # another iteration has started since
        self._form, self._background = form, background
        self._writer: ShardWriter | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let every strategy read both forms."""
        super().setup(trainer, pl_module, stage)
        if not isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.checkpoint_io = BothForms()
            if self._form == "sharded":
                raise InputError("checkpoint.form sharded needs --strategy fsdp; leave it out for one file")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the disk space now instead of after hours."""
        super().on_train_start(trainer, pl_module)
        self.saved_iteration = training_module(pl_module).iteration
        if isinstance(trainer.strategy, ShardedStrategy) and self._form != "file" and not is_trial(trainer):
            self._writer = ShardWriter(self._background)
        if not is_trial(trainer):
            self._check_space(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last and the best checkpoint if due."""
        if is_trial(trainer):
            return
        iteration = training_module(pl_module).iteration
        # Validation ran before this hook. Between evaluations the old score remains, which never beats the best.
        score = trainer.callback_metrics.get(self.monitor or "")
        if score is None and not self._told and any(name.startswith("val/") for name in trainer.callback_metrics):
            self._told = True
            if trainer.is_global_zero:
                line = f"no best.ckpt is kept: checkpoint.monitor {self.monitor} is not among those of metrics.csv"
                console.print(line, style="yellow", markup=False, soft_wrap=True)
        best = score is not None and self._is_better(trainer, score)
        last = iteration % self._every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        self._boundary = copy.deepcopy(_position(trainer))
        if best or last:
            self._save(trainer, pl_module, iteration, score if best else None, last)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.finish()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last iteration of a run that stopped early."""
        iteration = training_module(pl_module).iteration
        if not is_trial(trainer) and self.saved_iteration != iteration:
            self._save(trainer, pl_module, iteration, None, True)
        self.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Finish what is being written; a failure of it would hide the exception."""
        with suppress(OSError):
            self.finish()
        super().on_exception(trainer, pl_module, exception)

    def finish(self) -> None:
        """Return when the checkpoint that is being written in the background, if any, is in its place."""
        if self._writer is not None:
            self._writer.wait()

    def save_boundary(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last finished iteration, if not saved yet, before the next one changes any weights."""
        iteration = training_module(pl_module).iteration
        if not is_trial(trainer) and self.saved_iteration != iteration:
            self._within = True
            self._save(trainer, pl_module, iteration, None, True)
        self.finish()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add strategy, precision and number of processes, and the loop state at the iteration boundary."""
        checkpoint["trained_with"] = trained_with(trainer)
        if self._within:
            checkpoint.update(epoch=self._boundary["epoch"], global_step=self._boundary["global_step"])
            checkpoint["loops"]["fit_loop"] = self._boundary["fit_loop"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Print which of `trained_with` have changed."""
        before, now = checkpoint.get("trained_with", {}), trained_with(trainer)
        changes = [f"{key} {before[key]} → {now[key]}" for key in now if key in before and before[key] != now[key]]
        if changes and trainer.is_global_zero and trainer.state.fn == "fit":
            line = f"resumed with another setting: {', '.join(changes)}; equal to the old one up to rounding"
            console.print(line, markup=False, soft_wrap=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, unless the run continues in another folder, which has its own best checkpoint."""
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)

    def _is_better(self, trainer: pl.Trainer, score: Tensor) -> bool:
        if not torch.isfinite(score):
            return False
        old = self.best_model_score
        better = old is None or bool(score > old if self.mode == "max" else score < old)
        return trainer.strategy.reduce_boolean_decision(better)

    def _save(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, iteration: int, best: Tensor | None, last: bool
    ) -> None:
        self._check_space(trainer, pl_module)
        folder = Path(str(self.dirpath))
        names = [name for name, due in (("best", best is not None), ("last", last)) if due]
        if best is not None:  # before saving, so that the checkpoint contains it
            self.best_model_score = self.current_score = best.detach().cpu().clone()
            self.best_model_path = str(folder / "best.ckpt")
            self.best_k_models, self.kth_value = {self.best_model_path: self.best_model_score}, self.best_model_score
            self.kth_best_model_path = self.best_model_path
        if last:
            self.last_model_path = str(folder / "last.ckpt")
        temporary = folder / ".saving.tmp"
        publishing = partial(publish, temporary, folder, names, iteration)
        if self._writer is None:
            try:
                self._save_checkpoint(trainer, str(temporary))
                if trainer.is_global_zero:
                    flush(temporary)
                    publishing()
            finally:
                if trainer.is_global_zero:
                    remove(temporary)
        else:
            assert isinstance(trainer.strategy, ShardedStrategy)
            self.finish()
            if trainer.is_global_zero:
                remove(temporary)  # of a run that was killed
            trainer.strategy.shards = partial(self._writer.save, publish=publishing)
            try:
                self._save_checkpoint(trainer, str(temporary))
            finally:
                trainer.strategy.shards = None
        trainer.strategy.barrier("IterationCheckpoint")
        self._last_checkpoint_saved = str(folder / f"{names[-1]}.ckpt")
        if last:
            self.saved_iteration = iteration

    def _check_space(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder, needed = Path(str(self.dirpath)), checkpoint_bytes(pl_module, self.save_weights_only)
        free = trainer.strategy.broadcast(free_bytes(folder) if trainer.is_global_zero else 0)
        if free < needed:  # the same on all ranks
            raise InputError(
                f"not enough free disk space for a checkpoint in {folder}: it needs about {needed:,} bytes, "
                f"{free:,} are free; free some space or choose another folder (--trainer.default_root_dir)"
            )


class BothForms(TorchCheckpointIO):
    """Reads checkpoints in distributed form as if they were files."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The whole checkpoint, in CPU memory if it is a folder."""
        if Path(path).is_dir():
            return whole_checkpoint(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


STRATEGIES = {"SingleDeviceStrategy": "auto", "DDPStrategy": "ddp", "ShardedStrategy": "fsdp"}


def trained_with(trainer: pl.Trainer) -> dict[str, str | int]:
    """Settings that a resumed run may change, with results equal up to rounding."""
    strategy = type(trainer.strategy).__name__
    return {
        "strategy": STRATEGIES.get(strategy, strategy),
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
    }


def _position(trainer: pl.Trainer) -> dict[str, Any]:
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "fit_loop": trainer.fit_loop.state_dict(),
    }


def checkpoint_bytes(module: nn.Module, weights_only: bool = False) -> int:
    """Approximate size of a checkpoint: all parameters and buffers, and two moments of each trained parameter."""
    size = sum(b.numel() * b.element_size() for b in module.buffers())
    for p in module.parameters():
        size += p.numel() * p.element_size() * (3 if p.requires_grad and not weights_only else 1)
    return size
