"""The plan of a study: a YAML file of cells and seeds, and the jobs (command lines) that it stands for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo_lit.errors import InputError
from sppo_lit.study.protocols import PROTOCOLS, size_flags
from sppo_lit.utils.anchors import ITSELF, contains_itself
from sppo_lit.utils.files import written_whole
from sppo_lit.utils.paths import find
from sppo_lit.utils.provenance import made_with

NAME = r"[A-Za-z0-9][\w.-]*"
"""Pattern of the name of a cell or of a validation, which is also a folder name."""

DEVICE = r"cpu|cuda:\d+"
UNITS: dict[str, Callable[[Any], Any]] = {"seconds": float, "tokens": int, "sequences": int}
"""Unit of a budget (`clock.max_<unit>`) → type of its value."""

CELLS = "cells"
TRAIN = "train"
RESERVED = {
    "seed_everything": "seeds",
    "run_name": "the cell's name",
    "trainer.default_root_dir": "out",
    "clock.max_seconds": "budget",
    "clock.max_tokens": "budget",
    "clock.max_sequences": "budget",
    "clock.evaluations": "evaluations",
    "ckpt_path": "nothing: a cell resumes by itself",
}
"""Flag that the study sets → the key that it is set from."""

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of runs, cells × seeds, that differ in a few flags and share a budget.

    Attributes:
        title: heading of the display and the report.
        recipe: path of the recipe that all cells start from.
        cells: cell name → its own flags, by dotted key, and those that the protocol sets.
        budget: budget of one run: ``{"seconds": …}`` of training (`clock.max_seconds`), or ``{"tokens": …}`` or
            ``{"sequences": …}`` sampled.
        out: folder of runs, logs and report.
        common: flags of every cell.
        seeds: seeds of every cell.
        evaluations: number of evaluations of a run, equally spaced over the budget, besides the one before training.
        parallel: runs at the same time; None means one for each device, or one.
        threads: `OMP_NUM_THREADS` of each run.
        devices: ``cpu`` or ``cuda:0`` …, assigned in turn; empty leaves the choice to the recipe.
        baseline: cell that speed-ups refer to.
        protocol: name in `PROTOCOLS` of what cells with different numbers of responses to a prompt have in common; None
            leaves the size of their iterations to the file.
        after: name → flags of a `sppo run validate` on the last checkpoint of every cell and seed, or only of the cells
            listed under its key "cells".
    """

    title: str
    recipe: str
    cells: Mapping[str, Flags]
    budget: Mapping[str, float]
    out: Path
    common: Flags
    seeds: Sequence[int]
    evaluations: int
    parallel: int | None
    threads: int
    devices: Sequence[str]
    baseline: str | None
    protocol: str | None
    after: Mapping[str, Flags]

    @property
    def at_once(self) -> int:
        """Number of runs at the same time."""
        return self.parallel or max(1, len(self.devices))


@dataclass(frozen=True)
class Job:
    """One command of a study: the training of a cell with a seed, or a validation of its last checkpoint.

    Attributes:
        cell: name of the cell.
        seed: seed of the run.
        stage: `TRAIN` or a name in `Study.after`.
        arguments: arguments of `sppo`; a resumed training adds its checkpoint.
        runs: folder that holds the run's `version_<n>`.
        record: path of the log and the status file, without suffix.
    """

    cell: str
    seed: int
    stage: str
    arguments: tuple[str, ...]
    runs: Path
    record: Path

    @property
    def log(self) -> Path:
        """Output of the command."""
        return self.record.with_name(self.record.name + ".log")

    @property
    def status(self) -> Path:
        """JSON file with the arguments and whether the command is done."""
        return self.record.with_name(self.record.name + ".json")

    @property
    def run(self) -> Path:
        """Folder of the run; there is one version only, because a training resumes in its own folder."""
        return self.runs / "version_0"

    @property
    def title(self) -> str:
        """Cell, seed and stage for messages."""
        return f"{self.cell}, seed {self.seed}" + ("" if self.stage == TRAIN else f", {self.stage}")


def jobs(study: Study, seeds: Sequence[int] | None = None, only: Sequence[str] | None = None) -> list[Job]:
    """The jobs of a study in the order in which they start: seed by seed, each with all cells.

    Other load on a shared machine thereby affects all cells alike.

    Args:
        study: the study.
        seeds: seeds to run, also others than the study's; None for the study's.
        only: selected cells; None for all.

    Raises:
        InputError: a negative seed, or a cell that the study does not have.
    """
    for cell in only or ():
        if cell not in study.cells:
            raise InputError(f"study: --only {cell} is not in it; it has {', '.join(study.cells)}")
    cells = [cell for cell in study.cells if only is None or cell in only]
    result = []
    for seed in dict.fromkeys(study.seeds if seeds is None else seeds):
        if seed < 0:
            raise InputError(f"study: --seeds {seed}: a seed is 0 or above")
        result += [training_job(study, cell, seed) for cell in cells]
        result += [
            validation_job(study, name, cell, seed)
            for name, flags in study.after.items()
            for cell in cells
            if cell in flags.get(CELLS, study.cells)
        ]
    return result


def training_job(study: Study, cell: str, seed: int) -> Job:
    """The training of a cell with a seed."""
    root = study.out / f"seed-{seed}"
    flags = {"trainer.max_epochs": -1, **study.common, **study.cells[cell], "seed_everything": seed}
    flags |= {f"clock.max_{unit}": amount for unit, amount in study.budget.items()}
    flags |= {"clock.evaluations": study.evaluations, "trainer.default_root_dir": str(root), "run_name": cell}
    arguments = ("run", "fit", study.recipe, *as_arguments(flags))
    return Job(cell, seed, TRAIN, arguments, root / cell, study.out / "logs" / f"seed-{seed}-{cell}")


def validation_job(study: Study, name: str, cell: str, seed: int) -> Job:
    """The validation `name` of `Study.after` on the last checkpoint of a cell."""
    run = training_job(study, cell, seed).run
    root = study.out / "after" / name / f"seed-{seed}"
    flags = {key: value for key, value in study.after[name].items() if key != CELLS}
    flags |= {"trainer.default_root_dir": str(root), "run_name": cell}
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    arguments = ("run", "validate", str(run / "config.yaml"), checkpoint, *as_arguments(flags))
    record = study.out / "logs" / f"seed-{seed}-{cell}-{name}"
    return Job(cell, seed, name, arguments, root / f"{cell}-validate", record)


def as_arguments(flags: Flags) -> list[str]:
    """``{"model.kl.coef": 0.2}`` → ``["--model.kl.coef=0.2"]``."""
    return [f"--{key}={flag_value(value)}" for key, value in flags.items()]


def flag_value(value: Any) -> str:
    """A flag's value on the command line: text as it is, anything else (lists, null, booleans …) as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: str, out: Path | None = None) -> Study:
    """Read a study from a YAML file and check it.

    Args:
        path: a file, also one that is shipped with the package.
        out: folder to use instead of the file's `out`.

    Raises:
        InputError: the file does not exist or is not YAML, or a key is unknown, missing or has an invalid value.
    """
    file = Path(find(path))
    if not file.is_file():
        raise InputError(f"study {path}: no such file; e.g. recipes/study/quickstart.yaml")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no valid YAML ({' '.join(str(error).split())[:200]}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a study; write a YAML mapping with the keys {', '.join(KEYS)}")
    if contains_itself(content):
        raise InputError(f"{path}: {ITSELF}")
    if unknown := content.keys() - KEYS.keys():
        raise InputError(f"{path}: unknown key {sorted(map(str, unknown))[0]}; the keys are {', '.join(KEYS)}")
    values = {key: content.get(key, default) for key, (default, _, _) in KEYS.items()}
    for key, (_, is_valid, requirement) in KEYS.items():
        if values[key] is REQUIRED:
            raise InputError(f"{path}: {key} is missing; it must be {requirement}")
        if not is_valid(values[key]):
            raise InputError(f"{path}: {key} is {values[key]!r}; it must be {requirement}")
    for where in ("cells", "after"):
        values[where] = {name: flags or {} for name, flags in values[where].items()}
        for name, flags in values[where].items():
            _check_flags(f"{path}: {where}.{name}", flags)
    _check_flags(f"{path}: common", values["common"])
    for name, flags in values["after"].items():
        if unknown := set(flags.get(CELLS, ())) - values["cells"].keys():
            raise InputError(f"{path}: after.{name}: {sorted(unknown)[0]} is no cell")
    jobs = [*values["cells"], *(f"{cell}-{name}" for name in values["after"] for cell in values["cells"])]
    if taken := [job for job in dict.fromkeys(jobs) if jobs.count(job) > 1]:
        raise InputError(f"{path}: cell {taken[0]} has the name of another cell's validation; rename it")
    if values["baseline"] is not None and values["baseline"] not in values["cells"]:
        raise InputError(
            f"{path}: baseline {values['baseline']} is no cell; choose one of {', '.join(values['cells'])}"
        )
    values["recipe"] = str(Path(find(values["recipe"])).absolute())
    if not Path(values["recipe"]).is_file():
        raise InputError(f"{path}: recipe {values['recipe']}: no such file; 'sppo list' shows the recipes")
    if values["protocol"] is not None:
        values["cells"] = _sized_cells(path, values)
    out = Path(out or values["out"] or Path("lightning_logs") / f"study-{file.stem}")
    return Study(
        **{**values, "out": out.resolve(), "budget": {unit: UNITS[unit](n) for unit, n in values["budget"].items()}}
    )


def _sized_cells(path: str, values: Mapping[str, Any]) -> dict[str, Flags]:
    """The cells of a study with the flags that its protocol sets."""
    try:
        recipe = yaml.safe_load(Path(values["recipe"]).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{values['recipe']}: no valid YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(recipe, dict):
        raise InputError(
            f"{values['recipe']}: not a recipe; write a YAML mapping with the keys model, data and trainer"
        )
    sized: dict[str, Flags] = {}
    for name, flags in values["cells"].items():
        try:
            sized[name] = {**flags, **size_flags(values["protocol"], recipe, values["common"], flags)}
        except InputError as error:
            raise InputError(f"{path}: cells.{name}: {error}") from error
    return sized


def _check_flags(where: str, flags: Flags) -> None:
    for key in flags:
        if key in RESERVED:
            raise InputError(f"{where}: {key} is set by the study (from {RESERVED[key]}); remove it")


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value > 0


def _count(value: Any) -> bool:
    return _positive(value) and isinstance(value, int)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _named(value: Any) -> bool:
    return _mapping(value) and all(re.fullmatch(NAME, key) and _mapping(flags or {}) for key, flags in value.items())


def _list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_valid, value)) and len(set(value)) == len(value)


def _budget(value: Any) -> bool:
    return _mapping(value) and len(value) == 1 and value.keys() <= UNITS.keys() and all(map(_positive, value.values()))


REQUIRED = object()
KEYS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "title": (REQUIRED, lambda v: isinstance(v, str), "text"),
    "recipe": (REQUIRED, lambda v: isinstance(v, str), "the path of a recipe"),
    "cells": (REQUIRED, lambda v: _named(v) and bool(v), "a mapping from names (letters, digits, . _ -) to flags"),
    "common": ({}, _mapping, "a mapping from flags such as model.ppo.clip_low to values"),
    "seeds": ([1], lambda v: _list(v, lambda s: type(s) is int and s >= 0) and bool(v), "a list of different integers"),
    "budget": (REQUIRED, _budget, "{seconds: N}, {tokens: N} or {sequences: N} with N above 0"),
    "evaluations": (10, _count, "an integer of at least 1"),
    "parallel": (None, lambda v: v is None or _count(v), "an integer of at least 1"),
    "threads": (1, _count, "an integer of at least 1"),
    "devices": (
        [],
        lambda v: _list(v, lambda d: isinstance(d, str) and re.fullmatch(DEVICE, d) is not None),
        "a list such as [cuda:0, cuda:1] or [cpu]",
    ),
    "baseline": (None, lambda v: v is None or isinstance(v, str), "the name of a cell"),
    "protocol": (None, lambda v: v is None or (isinstance(v, str) and v in PROTOCOLS), " or ".join(PROTOCOLS)),
    "after": (
        {},
        lambda v: (
            _named(v) and all(_list((flags or {}).get(CELLS, []), lambda c: isinstance(c, str)) for flags in v.values())
        ),
        "a mapping from names to flags of 'sppo run validate' (and cells: [NAME, …] for some cells only)",
    ),
    "out": (None, lambda v: v is None or isinstance(v, str), "a folder"),
}
"""Key of the YAML file → default, check, and what a value must be."""


# ---------------------------------------------------------------------------------------------------------- study.json


def write_study_json(study: Study, runs: bool = True) -> None:
    """Write what the report needs of the study to ``<out>/study.json``; if it `runs` now, also what with."""
    recipe = os.path.relpath(study.recipe) if Path(study.recipe).is_relative_to(Path.cwd()) else study.recipe
    fields = asdict(study)
    names = ("title", "budget", "baseline", "protocol", "seeds", "common", "cells", "after")
    content = {"recipe": recipe, **{name: fields[name] for name in names}}
    file = study.out / "study.json"
    before = json.loads(file.read_text(encoding="utf-8")).get("made_with", []) if file.is_file() else []
    content["made_with"] = list(dict.fromkeys([*before, made_with()])) if runs else before
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def read_study_json(source: Path) -> dict[str, Any]:
    """Read the ``study.json`` of the study that a folder belongs to, or an archive; empty if it belongs to none."""
    if source.is_file():
        try:
            return dict(json.loads(source.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return {}  # `find_runs` says that it is not an archive
    for folder in (source.absolute(), *source.absolute().parents):
        if (folder / "study.json").is_file():
            return dict(json.loads((folder / "study.json").read_text(encoding="utf-8")))
    return {}
