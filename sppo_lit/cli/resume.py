"""Checkpoints to start from, and resuming interrupted runs and evaluations."""

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
from sppo_lit.distributed.checkpoints import META, read_meta
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
        InputError: there is no such checkpoint.
    """
    if path in ("last", "best"):
        candidates = sorted(runs.glob(f"version_*/checkpoints/{path}.ckpt"), key=lambda p: p.stat().st_mtime)
        if not candidates and path == "best" and any(runs.glob("version_*/checkpoints/last.ckpt")):
            raise InputError(
                f"--ckpt_path best: no run under {runs} has one, for none was evaluated after an iteration (see "
                "data.val and trainer.check_val_every_n_epoch); take --ckpt_path last"
            )
        if not candidates:
            raise InputError(f"--ckpt_path {path}: no {path}.ckpt in any run under {runs}; train first or give a file")
        return candidates[-1]
    file = Path(path)
    if not path or not file.exists():
        raise InputError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, 'last' or 'best'")
    return file


def usable_checkpoint(path: str, runs: Path, resume: bool) -> tuple[Path, int]:
    """The checkpoint that `--ckpt_path` names, and its iterations; `previous` or `best` replaces a damaged `last`.

    Args:
        path: see `checkpoint_file`.
        runs: folder of this recipe's runs.
        resume: whether to resume training from it.

    Raises:
        InputError: it and its replacements are missing or damaged.
    """
    file = checkpoint_file(path, runs)
    others = [file.with_name(f"{name}.ckpt") for name in ("previous", "best")] if path == "last" else []
    try:
        return file, check_checkpoint(file, resume)
    except DamagedError as error:
        for other in others:
            with suppress(InputError):
                iterations = check_checkpoint(other, resume)
                if not getattr(rank_zero_only, "rank", 0):
                    line = f"{file} is damaged: resuming from {other.name} (iteration {iterations})"
                    console.print(line, markup=False, soft_wrap=True)
                return other, iterations
        raise InputError(str(error)) from error


class DamagedError(InputError):
    """A checkpoint that cannot be read."""


def check_checkpoint(file: Path, resume: bool) -> int:
    """Iterations completed in a checkpoint, read without loading its weights.

    Args:
        file: a checkpoint, in distributed form a folder.
        resume: whether to resume training from it, which needs the optimizer states.

    Raises:
        DamagedError: missing, damaged, or not a checkpoint.
        InputError: not a checkpoint of sppo-lit, or without the optimizer states needed to resume.
    """
    if file.is_dir() and not any(file.glob("*.distcp")) and not (file / META).exists():
        inside = [f for f in (file / "last.ckpt", file / "checkpoints" / "last.ckpt") if f.exists()]
        example = inside[0] if inside else "lightning_logs/RECIPE/version_0/checkpoints/last.ckpt"
        raise InputError(f"--ckpt_path {file}: a folder, and not a sharded checkpoint; name the file, e.g. {example}")
    damaged = (
        f"--ckpt_path {file}: the file is damaged or not a checkpoint; use another one from its folder (previous.ckpt, "
        "best.ckpt)"
    )
    if not file.is_dir() and not zipfile.is_zipfile(file):
        raise DamagedError(damaged)
    try:
        content = (
            read_meta(file) if file.is_dir() else torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        )
    except Exception as error:  # unpickling unknown bytes may raise anything
        raise DamagedError(damaged) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or "iterations_done" not in state:
        raise InputError(f"--ckpt_path {file}: not a checkpoint of sppo-lit; give one from a run's checkpoints folder")
    if resume and "optimizer_states" not in content:
        raise InputError(
            f"--ckpt_path {file}: holds weights only, without the optimizers, and cannot be resumed; it can be "
            "evaluated with 'validate'"
        )
    return int(state["iterations_done"])


def run_of(checkpoint: Path, runs: Path) -> Path | None:
    """The run folder under `runs` to continue if `checkpoint` is its `last` or `previous`; None starts a new one."""
    folder = checkpoint.resolve().parent.parent
    last = checkpoint.name in ("last.ckpt", "previous.ckpt") and checkpoint.parent.name == "checkpoints"
    return runs / folder.name if last and folder.parent == runs.resolve() else None


THROUGHPUT = {"memory": None, "rollout": "max_concurrent", "evaluation": "chunk"}
"""Groups of model settings -> the key (None: all) that affects only the speed of sampling, not the responses."""


def response_settings(settings: Namespace) -> dict[str, Any]:
    """Settings that the responses of an evaluation depend on: evaluations with equal ones may share responses.

    Args:
        settings: settings of the whole recipe.
    """
    content = settings.as_dict()
    model = content["model"].get("init_args", content["model"])
    kept = dict(model)
    for group, left_out in THROUGHPUT.items():
        kept[group] = {key: value for key, value in model[group].items() if left_out not in (None, key)}
    sources = [content["ckpt_path"], *(source["path"] for source in (model["policy"], model.get("critic")) if source)]
    relevant: dict[str, object] = {
        "model": {**content["model"], "init_args": kept} if "init_args" in content["model"] else kept,
        "data": content["data"],
        "seed_everything": content["seed_everything"],
        "precision": content["trainer"]["precision"],
        "weights": [fingerprint(Path(find(source))) for source in sources if source],
    }
    as_json: dict[str, Any] = json.loads(json.dumps(relevant, default=str))
    return as_json


def fingerprint(path: Path) -> list[object]:
    """Path, size and modification time of each file of weights on disk; only the path if it does not exist."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return [str(path), *([str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files)]


def unfinished_run(runs: Path, settings: Mapping[str, object]) -> Path | None:
    """The newest folder under `runs` with an unfinished evaluation of these settings; None if there is none."""
    unfinished = [p for p in runs.glob("version_*") if unfinished_settings(p / "evaluations") == settings]
    return max(unfinished, key=lambda p: p.stat().st_mtime, default=None)


class RunCSVLogger(CSVLogger):
    """CSVLogger that continues the `metrics.csv` of an interrupted run instead of deleting it.

    Args:
        save_dir: folder of all runs.
        name: name of the recipe's runs.
        version: folder of the run to continue, e.g. "version_0"; None starts a new one.
        iterations: iterations of the checkpoint to resume from; rows of later iterations are dropped.
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
        writer._rewrite_with_new_header = partial(rewrite, file)  # Lightning's is not atomic
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
    """Atomically rewrite a `metrics.csv` with more columns."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    write_table(file, names, rows)


def write_table(file: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """Atomically write a CSV file."""
    with written_whole(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, names)
        table.writeheader()
        table.writerows(rows)


def rows_until(file: Path, iterations: int) -> tuple[list[str], list[dict[str, str]]]:
    """Column names of a `metrics.csv` and its rows of at most `iterations` iterations; incomplete rows are dropped."""
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        rows = [row for row in reader if None not in row.values() and row.get("step")]
        return list(reader.fieldnames or []), [row for row in rows if float(row["step"]) <= iterations]
