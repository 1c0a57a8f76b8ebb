"""Evaluation on held-out problems: a table of metrics with intervals, and all completions on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch.distributed
from lightning.pytorch.callbacks import Callback
from rich import box
from rich.table import Table

from sppo_lit.callbacks.journal import Journal, write_completions
from sppo_lit.training.metrics import MEAN, MEASURES, Result, accuracy, file_name, flatten, with_mean
from sppo_lit.training.protocols import training_module, validation_names
from sppo_lit.training.run_folder import is_trial, run_folder
from sppo_lit.types import Problem, Scored
from sppo_lit.utils.console import console


class Evaluation(Callback):
    """Accuracy on each validation set, in `validate`, during `fit`, and before training (as the sanity check).

    The module logs the metrics (`training.metrics.flatten`); this callback prints them and writes the responses.

    Args:
        jsonl: write every completion to ``<run>/evaluations/<set>-iteration-<n>.jsonl``; in `validate` also as soon as
            it is finished, so that the same command resumes an interrupted evaluation.
        resume: continue from the responses of an interrupted `validate`; false samples all of them again.

    Attributes:
        first: metrics of the first evaluation of this run, by set, then name; kept in checkpoints.
        last: metrics of the latest one.
        history: (iteration, ``val/accuracy``) of every evaluation.
    """

    def __init__(self, jsonl: bool = True, resume: bool = True) -> None:
        self.jsonl, self.resume = jsonl, resume
        self._settings: Mapping[str, object] | None = None  # settings that the responses depend on
        self._journal: Journal | None = None
        self.first: dict[str, Result] = {}
        self.last: dict[str, Result] = {}
        self.history: list[tuple[int, float]] = []
        self._responses: dict[str, list[Scored]] = {}

    def keep_responses(self, settings: Mapping[str, object]) -> None:
        """Write finished responses to disk at once, so that an interrupted evaluation can resume.

        Args:
            settings: settings that the responses depend on; responses sampled with other ones are not reused.
        """
        self._settings = settings

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with every set on every rank, even without problems of it; read the responses on disk."""
        names = validation_names(trainer)
        self._responses = {name: [] for name in names}
        if self.jsonl and self._settings is not None:
            folder, iteration = run_folder(trainer) / "evaluations", training_module(pl_module).iteration
            files = [f"{file_name(name)}-iteration-{iteration}" for name in names]
            self._journal = Journal(folder, files, trainer.global_rank)
            if trainer.is_global_zero:
                self._journal.begin(self._settings, fresh=not self.resume)
            trainer.strategy.barrier()
            stored = self._journal.read()
            if stored and trainer.is_global_zero:
                console.print(
                    f"resuming in {folder.parent}: {stored:,} responses are on disk", markup=False, soft_wrap=True
                )

    def stored_response(self, number: int, problem: Problem, sample: int) -> Scored | None:
        """The response of an interrupted `validate` to a problem of set `number`, if there is one."""
        return None if self._journal is None else self._journal.find(number, problem, sample)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the responses of one batch."""
        if self.jsonl:
            self._responses[list(self._responses)[dataloader_idx]].extend(outputs)
        if self._journal is not None:
            self._journal.append(dataloader_idx, outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the responses and print the metrics."""
        module = training_module(pl_module)
        iteration, results = module.iteration, module.validation_results()
        folder = run_folder(trainer) / "evaluations"
        if self.jsonl and not is_trial(trainer):
            for name, responses in self._responses.items():
                gathered = _gather(responses)
                if trainer.is_global_zero:
                    write_completions(folder / f"{file_name(name)}-iteration-{iteration}.jsonl", gathered)
        if self._journal is not None and trainer.is_global_zero:
            self._journal.end()
        self._responses, self._journal = {}, None
        if not results:
            return
        logged = flatten(results)
        if trainer.sanity_checking:  # in which Lightning drops what the module logs
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.log_metrics(logged, step=iteration)
                logger.save()
        if trainer.sanity_checking and not module.evaluates_all_at_start:  # nothing is compared with a part
            if trainer.is_global_zero:
                console.print(table(results, {}, iteration))
            return
        self.last = results
        self.history = [h for h in self.history if h[0] < iteration] + [(iteration, logged["val/accuracy"])]
        self.first = self.first or results
        if trainer.is_global_zero:
            earlier = self.first if trainer.state.fn == "fit" and self.first is not results else {}
            console.print(table(results, earlier, iteration, trainer.state.fn == "fit"))
            if self.jsonl and trainer.state.fn == "validate":
                console.print(f"completions: {folder}", markup=False, soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Metrics that a resumed run needs to show the change from the first evaluation."""
        return {"first": self.first, "last": self.last, "history": [list(pair) for pair in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics of the resumed run."""
        self.first, self.last = state_dict["first"], state_dict["last"]
        self.history = [(int(n), float(a)) for n, a in state_dict["history"]]


def table(results: dict[str, Result], earlier: dict[str, Result], iteration: int, training: bool = True) -> Table:
    """The metrics of each set, in percent; with several sets the last row is their mean.

    Args:
        results: metrics by set.
        earlier: metrics to compare with, by set; empty for none.
        iteration: iterations completed.
        training: whether the evaluation is part of training.
    """
    ks = {r["k"] for r in results.values() if "avg_at_k" in r}
    k = f"{ks.pop():g}" if len(ks) == 1 else "k"
    metrics = {key: name.format(k=k) for key, name in MEASURES.items() if any(key in r for r in results.values())}
    when = f" after iteration {iteration}" if iteration else " before training" if training else ""
    shown = Table(title=f"Evaluation{when} (%)", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.padding, shown.pad_edge, shown.show_edge = (0, 1, 0, 0), False, False  # all metrics fit in 80 columns
    shown.add_column("set", overflow="fold")
    shown.add_column("problems", justify="right", no_wrap=True)
    for name in metrics.values():
        shown.add_column(name, justify="right", min_width=max(len(name), len("±13.4")))
    for name in ["tokens", "truncated", *(["change"] if earlier else [])]:
        shown.add_column(name, justify="right", no_wrap=True)
    before = with_mean(earlier) if earlier.keys() == results.keys() else earlier
    for name, r in with_mean(results).items():
        if name == MEAN:
            shown.add_section()
        row = [name, f"{r['problems']:.0f}", *(_percent(r, key) for key in metrics)]
        row += [f"{r['length']:.0f}", f"{100 * r['truncation_rate']:.1f}"]
        if earlier:
            row.append(_change(accuracy(r) - accuracy(before[name])) if name in before else "")
        shown.add_row(*row)
    return shown


def _percent(result: Result, key: str) -> str:
    if key not in result:
        return "[dim]–[/dim]"
    interval = f" [dim]±{100 * result[f'{key}_ci']:.1f}[/dim]" if f"{key}_ci" in result else ""
    return f"[bold]{100 * result[key]:.1f}[/bold]{interval}"


def _change(gain: float) -> str:
    colour = "green" if gain > 0 else "red" if gain < 0 else "dim"
    return f"[{colour}]{100 * gain:+.1f}[/{colour}]"


def _gather(responses: list[Scored]) -> list[Scored]:
    """The responses of all ranks on rank zero, nothing on the others."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return responses
    first = torch.distributed.get_rank() == 0
    parts: list[list[Scored] | None] | None = [None] * torch.distributed.get_world_size() if first else None
    torch.distributed.gather_object(responses, parts)
    return [s for part in parts or [] for s in part or []]
