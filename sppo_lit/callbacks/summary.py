"""Summary at the end of a run: results and paths."""

from __future__ import annotations

import json
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sppo_lit.callbacks.card import auto_class
from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.errors import Stopped
from sppo_lit.training.protocols import BoundaryKeeper, callbacks_of, training_module
from sppo_lit.training.run_folder import run_folder
from sppo_lit.utils import console as shared
from sppo_lit.utils.console import duration

PLACES = {
    "curves": "curves.png",
    "best": "checkpoints/best.ckpt",
    "last": "checkpoints/last.ckpt",
    "policy": "hf/policy",
    "critic": "hf/critic",
    "adapter": "hf/adapter",
    "completions": "evaluations",
}


class RunSummary(Callback):
    """Prints held-out accuracy before and after training, time, what ended the run, and paths of the results."""

    def __init__(self) -> None:
        self._folder = Path()
        self._started = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Record the run folder and the start time."""
        self._folder, self._started = run_folder(trainer), time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the summary, after all other callbacks have written their files in `on_train_end`."""
        if trainer.is_global_zero:
            callbacks = callbacks_of(trainer)
            evaluation = next((c for c in callbacks if isinstance(c, Evaluation)), None)
            history = evaluation.history if evaluation else []
            seconds = time.monotonic() - self._started
            iteration = training_module(pl_module).iteration
            shared.console.print(panel(self._folder, iteration, seconds, history, ended_by(trainer, iteration)))
            for command in commands(self._folder):  # outside the panel and unwrapped, to be copied
                shared.console.print(command, soft_wrap=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """After a signal, print how to resume."""
        last, recipe = self._folder / PLACES["last"], self._folder / "config.yaml"
        stopped = isinstance(exception, (KeyboardInterrupt, Stopped))
        if stopped and trainer.is_global_zero and trainer.state.fn == "fit":
            iteration = training_module(pl_module).iteration
            keepers = [c for c in callbacks_of(trainer) if isinstance(c, BoundaryKeeper)]
            saved = min([iteration, *(c.saved_iteration for c in keepers)])
            done = f"interrupted after iteration {saved}"
            if last.exists() and recipe.exists():
                done += f"; resume: lightning run fit {recipe} --ckpt_path {last}"
            shared.console.print(done, markup=False, soft_wrap=True)


def ended_by(trainer: pl.Trainer, iterations: int) -> str:
    """What has ended a run before its last iteration, as far as callbacks tell; "" where it was `max_epochs`."""
    most = trainer.max_epochs or -1
    if 0 <= most <= iterations:
        return ""
    reasons = []
    for callback in callbacks_of(trainer):
        if isinstance(callback, Clock) and callback.share == 1.0:
            reasons += [f"clock.max_{unit} {value:,}" for unit, value in callback.budget.items() if value is not None]
        elif isinstance(callback, EarlyStopping) and (
            callback.stopped_epoch or callback.wait_count >= callback.patience
        ):
            reasons.append(f"EarlyStopping on {callback.monitor}")
        elif isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            reasons.append("trainer.max_time")
    planned = f", before iteration {most} (max_epochs)" if most >= 0 else ""
    return (" and ".join(reasons) or "trainer.should_stop, which a callback has set") + planned


def panel(folder: Path, iterations: int, seconds: float, history: list[tuple[int, float]], ended: str = "") -> Panel:
    """The summary; missing files are not listed.

    Args:
        folder: run folder.
        iterations: iterations completed.
        seconds: wall-clock time of this run.
        history: (iteration, held-out accuracy) of each evaluation.
        ended: what ended the run early; "" for nothing.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("iterations", f"{iterations} in {duration(seconds)}")
    if ended:
        grid.add_row("ended by", Text(ended))
    if history:
        (_, first), (at, last) = history[0], history[-1]
        accuracy = Text(f"{first:.1%}" if len(history) > 1 else f"{last:.1%} after iteration {at}", "bold")
        if len(history) > 1:
            gain = 100 * (last - first)
            accuracy.append(f" → {last:.1%}   ").append(f"{gain:+.1f} points", "green" if gain > 0 else "red")
            best_at, best = max(history[1:], key=lambda pair: pair[1])  # among the iterations with a checkpoint
            accuracy.append(f"   best {best:.1%} after iteration {best_at}", "not bold dim")
        grid.add_row("held-out", accuracy)
    grid.add_row("run", Text(str(folder)))
    for name, place in PLACES.items():
        if (folder / place).exists():
            grid.add_row(name, Text(str(folder / place)))
    return Panel(grid, title="Run finished", title_align="left", border_style="green", expand=False, padding=(1, 2))


def commands(folder: Path) -> list[Text]:
    """Commands that evaluate the checkpoint and load the models of a finished run, as far as they exist."""
    lines = []
    checkpoint = next((p for p in ("best", "last") if (folder / PLACES[p]).exists()), None)
    if checkpoint and (folder / "config.yaml").exists():
        command = f"lightning run validate {folder / 'config.yaml'} --ckpt_path {folder / PLACES[checkpoint]}"
        lines.append(Text.assemble(("evaluate  ", "dim"), command))
    for part in ("policy", "critic"):
        config = folder / PLACES[part] / "config.json"
        if config.exists():
            auto = auto_class(json.loads(config.read_text(encoding="utf-8"))["architectures"][0])
            lines.append(Text.assemble(("load      ", "dim"), f'{auto}.from_pretrained("{folder / PLACES[part]}")'))
    return lines
