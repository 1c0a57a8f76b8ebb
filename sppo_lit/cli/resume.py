"""Checkpoints that a run starts from, and how an interrupted run or evaluation goes on."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sppo_lit.callbacks.journal import unfinished_settings
from sppo_lit.errors import InputError
from sppo_lit.utils.console import console
from sppo_lit.utils.files import written_whole
from sppo_lit.utils.paths import find


def checkpoint_file(path: str, runs: Path) -> Path:
    """The checkpoint that `--ckpt_path` names; `last` and `best` are looked up in the newest run of this recipe.

    Args:
        path: a file, a folder (sharded checkpoint), `last` or `best`.
        runs: folder that holds `version_0`, `version_1`, … of this recipe.

    Raises:
        InputError: missing, or no complete checkpoint file.
    """
    if path in ("last", "best"):
        found = sorted(runs.glob(f"version_*/checkpoints/{path}.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found and path == "best" and any(runs.glob("version_*/checkpoints/last.ckpt")):
            raise InputError(
                f"--ckpt_path best: no run under {runs} has one, for none was evaluated after an iteration (see "
                "data.val and trainer.check_val_every_n_epoch); take --ckpt_path last"
            )
        if not found:
            raise InputError(f"--ckpt_path {path}: no {path}.ckpt in any run under {runs}; train first or give a file")
        return found[-1]
    file = Path(path)
    if not file.exists():
        raise InputError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, 'last' or 'best'")
    return file


def usable_checkpoint(path: str, runs: Path, resume: bool) -> tuple[Path, int]:
    """The checkpoint that `--ckpt_path` names, and its iterations; a damaged `last` is replaced by the one before it.

    Args:
        path: as `checkpoint_file` takes it.
        runs: folder of this recipe's runs.
        resume: whether training goes on from it.

    Raises:
        InputError: missing or damaged, and so are those before it.
    """
    file = checkpoint_file(path, runs)
    others = [file.with_name(f"{name}.ckpt") for name in ("previous", "best")] if path == "last" else []
    try:
        return file, check_checkpoint(file, resume)
    except DamagedError as error:
        for other in others:
            with suppress(InputError):
                found = other, check_checkpoint(other, resume)
                if not getattr(rank_zero_only, "rank", 0):
                    line = f"{file} is damaged: going on from {other.name} (iteration {found[1]})"
                    console.print(line, markup=False, soft_wrap=True)
                return found
        raise InputError(str(error)) from error


class DamagedError(InputError):
    """A checkpoint that cannot be read."""


def check_checkpoint(file: Path, resume: bool) -> int:
    """Iterations that a checkpoint has behind it, read without its weights.

    Args:
        file: a checkpoint; a folder (sharded) is left for Lightning to judge.
        resume: whether training goes on from it, which needs the optimizers' state.

    Raises:
        DamagedError: missing, damaged, or no checkpoint.
        InputError: not one of ours, or weights only where training goes on.
    """
    if file.is_dir():
        return 0
    damaged = (
        f"--ckpt_path {file}: the file is damaged or no checkpoint; take another one of its folder (previous.ckpt, "
        "best.ckpt)"
    )
    if not zipfile.is_zipfile(file):
        raise DamagedError(damaged)
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a reader of foreign bytes may raise anything
        raise DamagedError(damaged) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "iterations_done" not in state:
        raise InputError(f"--ckpt_path {file}: no checkpoint of sppo-lit; give one from a run's checkpoints folder")
    if resume and "optimizer_states" not in content:
        raise InputError(
            f"--ckpt_path {file}: holds weights only, without the optimizers, and cannot be resumed; it can be "
            "evaluated with 'validate'"
        )
    return int(state["iterations_done"])


def run_of(checkpoint: Path, runs: Path) -> Path | None:
    """The run folder under `runs` that goes on if `checkpoint` is its last one or the one before; None: a new one."""
    folder = checkpoint.resolve().parent.parent
    last = checkpoint.name in ("last.ckpt", "previous.ckpt") and checkpoint.parent.name == "checkpoints"
    return runs / folder.name if last and folder.parent == runs.resolve() else None


THROUGHPUT = {"memory": None, "rollout": "max_concurrent", "evaluation": "chunk"}
"""Groups of a model's settings -> the key in them (None: all) that changes how fast it answers, not what."""


def response_settings(settings: Namespace) -> dict[str, Any]:
    """What the responses of an evaluation depend on: two with equal settings may share responses.

    Args:
        settings: of the whole recipe.
    """
    content = settings.as_dict()
    model = content["model"].get("init_args", content["model"])
    kept = dict(model)
    for group, left_out in THROUGHPUT.items():
        kept[group] = {key: value for key, value in model[group].items() if left_out not in (None, key)}
    sources = [content["ckpt_path"], *(source["path"] for source in (model["policy"], model.get("critic")) if source)]
    found: dict[str, object] = {
        "model": {**content["model"], "init_args": kept} if "init_args" in content["model"] else kept,
        "data": content["data"],
        "seed_everything": content["seed_everything"],
        "precision": content["trainer"]["precision"],
        "weights": [stamp(Path(find(source))) for source in sources if source],
    }
    as_json: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return as_json


def stamp(path: Path) -> list[object]:
    """What changes when weights on disk do: place, size and time of each file; only the name of what is not there."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return [str(path), *([str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files)]


def unfinished_run(runs: Path, settings: Mapping[str, object]) -> Path | None:
    """The newest folder under `runs` with an unfinished evaluation of these settings; None if there is none."""
    found = [p for p in runs.glob("version_*") if unfinished_settings(p / "evaluations") == settings]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


class RunCSVLogger(CSVLogger):
    """Lightning's logger, but one that continues the `metrics.csv` of an interrupted run instead of deleting it.

    Args:
        save_dir: folder of all runs.
        name: name of the recipe's runs.
        version: folder of the run to go on with, e.g. "version_0"; None starts a new one.
        iterations: of the checkpoint that the run goes on from; rows of later iterations are dropped.
    """

    def __init__(self, save_dir: Path, name: str, version: str | None = None, iterations: int = 0) -> None:
        super().__init__(save_dir, name=name, version=version)
        self._iterations = iterations

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; the first access opens the file."""
        if self._experiment is not None:
            return self._experiment
        file = Path(self.log_dir) / "metrics.csv"
        names, rows = rows_until(file, self._iterations) if file.is_file() else ([], [])
        writer = super().experiment
        if rows:
            write_table(file, names, rows)
            writer.metrics_keys = sorted(names)
        writer._rewrite_with_new_header = partial(rewrite, file)  # Lightning's own would lose all rows to a kill
        return writer


class FolderLogger(CSVLogger):
    """Gives a run its folder where the recipe asks for no logger; writes nothing."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Nothing."""

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing."""

    @rank_zero_only
    def save(self) -> None:
        """Nothing."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing."""


def rewrite(file: Path, names: list[str]) -> None:
    """Give a `metrics.csv` more columns, at once or not at all."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    write_table(file, names, rows)


def write_table(file: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """A CSV file with these columns and rows, at once or not at all."""
    with written_whole(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, names)
        table.writeheader()
        table.writerows(rows)


def rows_until(file: Path, iterations: int) -> tuple[list[str], list[dict[str, str]]]:
    """Column names of a `metrics.csv` and its rows of at most `iterations` iterations; a row cut short is dropped."""
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        rows = [row for row in reader if None not in row.values() and row.get("step")]
        return list(reader.fieldnames or []), [row for row in rows if float(row["step"]) <= iterations]
