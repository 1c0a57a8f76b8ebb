"""Evaluation on held-out problems: numbers with intervals, a table, and every completion on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed
from lightning.pytorch.callbacks import Callback
from rich.table import Table

from sppo_lit.callbacks.console import console, run_folder, written_whole
from sppo_lit.metrics import GREEDY, AccuracyAtK
from sppo_lit.types import Scored

Result = dict[str, float]


class Evaluation(Callback):
    """Accuracy on each validation set, in `validate`, during `fit`, and before training (as the sanity check).

    Logs, at step = iteration: ``val/<set>/`` greedy, greedy_ci, avg_at_k, avg_at_k_ci, pass_at_k, maj_at_k, k,
    problems, length (tokens), truncation_rate; and ``val/accuracy``, the mean over sets of the greedy accuracy, or of
    avg@k where no greedy response was asked for. ``_ci`` is the half width of the 95 % interval.

    Args:
        jsonl: write every completion to ``<run>/evaluations/<set>-iteration-<n>.jsonl``.

    Attributes:
        first: numbers of the first evaluation of this run, by set, then name; kept in checkpoints.
        last: numbers of the latest one.
        history: (iteration, ``val/accuracy``) of every evaluation.
    """

    def __init__(self, jsonl: bool = True) -> None:
        self.jsonl = jsonl
        self.first: dict[str, Result] = {}
        self.last: dict[str, Result] = {}
        self.history: list[tuple[int, float]] = []
        self._metrics: dict[str, AccuracyAtK] = {}
        self._responses: dict[str, list[Scored]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Every rank starts with every set, also with those of which it gets no problem."""
        sets = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        names = getattr(getattr(trainer, "datamodule", None), "val_names", None) or [
            f"set{i}" for i in range(len(sets))
        ]
        self._metrics = {name: AccuracyAtK().to(pl_module.device) for name in names}
        self._responses = {name: [] for name in names}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the responses of one batch."""
        name = list(self._metrics)[dataloader_idx]
        self._metrics[name].update(outputs)
        if self.jsonl:
            self._responses[name].extend(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute, log, write and show."""
        iteration = int(pl_module.iteration)  # type: ignore[arg-type]
        results = {name: result for name, metric in self._metrics.items() if (result := metric.compute())}
        folder = run_folder(trainer) / "evaluations"
        if self.jsonl:
            for name, responses in self._responses.items():
                everyone = _gather(responses)
                if trainer.is_global_zero:
                    write_completions(folder / f"{file_name(name)}-iteration-{iteration}.jsonl", everyone)
        self._metrics, self._responses = {}, {}
        if not results:
            return
        logged = flatten(results)
        if trainer.sanity_checking:  # Lightning drops what is logged here
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.log_metrics(logged, step=iteration)
                logger.save()
        else:
            # As "step", the iteration becomes the loggers' x-axis; else it would lag one behind.
            pl_module.log_dict({**logged, "step": float(iteration)}, batch_size=1)
        self.last = results
        self.history = [h for h in self.history if h[0] < iteration] + [(iteration, logged["val/accuracy"])]
        self.first = self.first or results
        if trainer.is_global_zero:
            earlier = self.first if trainer.state.fn == "fit" and self.first is not results else {}
            console.print(table(results, earlier, iteration))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to show the change from the first evaluation."""
        return {"first": self.first, "last": self.last, "history": [list(pair) for pair in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the numbers of the run that is resumed."""
        self.first, self.last = state_dict["first"], state_dict["last"]
        self.history = [(int(n), float(a)) for n, a in state_dict["history"]]


def accuracy(result: Result) -> float:
    """The one number of a set: greedy accuracy, or avg@k where there is none."""
    return result.get("greedy", result.get("avg_at_k", float("nan")))


def flatten(results: dict[str, Result]) -> Result:
    """Numbers by set → ``val/<set>/<name>`` and ``val/accuracy``."""
    flat = {f"val/{file_name(name)}/{key}": value for name, result in results.items() for key, value in result.items()}
    return flat | {"val/accuracy": sum(map(accuracy, results.values())) / len(results)}


def table(results: dict[str, Result], earlier: dict[str, Result], iteration: int) -> Table:
    """The numbers of each set, in percent, for a terminal.

    Args:
        results: numbers by set.
        earlier: numbers to compare with, by set; empty for none.
        iteration: iterations completed.
    """
    sampled = any("avg_at_k" in r for r in results.values())
    shown = Table(title=f"Evaluation after iteration {iteration}" if iteration else "Evaluation before training")
    shown.title_justify, shown.title_style = "left", "bold"
    shown.add_column("set")
    columns = ["problems", *(["k"] if sampled else []), "greedy"]
    columns += ["avg@k", "pass@k", "maj@k"] if sampled else []
    for name in [*columns, "tokens", "truncated", *(["change"] if earlier else [])]:
        shown.add_column(name, justify="right", no_wrap=True)
    for name, r in results.items():
        row = [name, f"{r['problems']:.0f}"]
        row += [f"{r['k']:.0f}"] if sampled else []
        row += [_percent(r, "greedy")]
        row += [_percent(r, key) for key in ("avg_at_k", "pass_at_k", "maj_at_k")] if sampled else []
        row += [f"{r['length']:.0f}", f"{100 * r['truncation_rate']:.1f} %"]
        if earlier:
            row.append(_change(accuracy(r) - accuracy(earlier[name])) if name in earlier else "")
        shown.add_row(*row)
    return shown


def _percent(result: Result, key: str) -> str:
    if key not in result:
        return "[dim]–[/dim]"
    interval = f" [dim]± {100 * result[f'{key}_ci']:.1f}[/dim]" if f"{key}_ci" in result else ""
    return f"[bold]{100 * result[key]:.1f}[/bold]{interval}"


def _change(gain: float) -> str:
    colour = "green" if gain > 0 else "red" if gain < 0 else "dim"
    return f"[{colour}]{100 * gain:+.1f}[/{colour}]"


def file_name(name: str) -> str:
    """The name of a data set as part of a metric's or a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)


def write_completions(path: Path, responses: Iterable[Scored]) -> None:
    """One JSON object per line and response, ordered by problem and sample, each response once."""
    unique = {(s.problem.key, s.sample): s for s in responses}
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        for s in (unique[key] for key in sorted(unique)):
            line = {
                "problem": s.problem.key,
                "source": s.problem.source,
                "level": s.problem.level,
                "prompt": s.problem.prompt,
                "gold": s.problem.answer,
                "text": s.text,
                "answer": s.verdict.answer,
                "reward": s.verdict.reward,
                "reason": s.verdict.reason,
                "tokens": s.tokens,
                "sample": s.sample,
                "greedy": s.sample == GREEDY,
                "finished": s.finished,
                "value": s.value,
                **({} if s.values is None else {"values": s.values}),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _gather(responses: list[Scored]) -> list[Scored]:
    """The responses of all ranks on rank zero, nothing on the others."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return responses
    first = torch.distributed.get_rank() == 0
    parts: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
    torch.distributed.gather_object(responses, parts)
    return [s for part in parts or [] for s in part]
