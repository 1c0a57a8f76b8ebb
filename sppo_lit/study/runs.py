"""Training runs as figures need them: what they are called, their algorithm, seed, and logged series."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo_lit.errors import InputError
from sppo_lit.utils.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from sppo_lit.utils.run_log import Series, read_metrics

ALGORITHMS = {
    "sppo": ("SPPO", BLUE),
    "grpo": ("GRPO", RED),
    "ppo": ("PPO", GREEN),
    "ppo_bce": ("PPO+BCE", ORANGE),
    "rloo": ("RLOO", PURPLE),
    "dr_grpo": ("Dr. GRPO", SKY),
    "remax": ("ReMax", "#332288"),
}
"""Short title and colour, the same in every figure (Okabe & Ito's, and one more)."""

SPARE = ("#882255", "#117733", GREY, "#AA4499", "#999933", "#000000")
"""Colours of a second cell of an algorithm, and of what is not in the table."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        label: runs that differ only in their seed share it: the run's name, with the algorithm where runs of that name
            differ in it.
        algorithm: `model.algorithm`.
        seed: `seed_everything`.
        series: of `read_metrics`.
        folder: where it lies.
    """

    label: str
    algorithm: str
    seed: int
    series: Series
    folder: Path


def find_runs(sources: Sequence[Path]) -> list[Run]:
    """The training runs in some folders, in the order of the study's cells, or else by label; then by seed.

    Args:
        sources: run folders, or folders that hold them, e.g. that of a study.

    Raises:
        InputError: a source that is not there, or no finished iteration in any.
    """
    folders: dict[Path, None] = {}
    for source in sources:
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; give run folders or the folder of a study")
        found = [source] if (source / "metrics.csv").is_file() else [p.parent for p in source.rglob("metrics.csv")]
        folders |= dict.fromkeys(sorted(found))
    read = []
    for folder in folders:
        series = read_metrics(folder / "metrics.csv")
        if "rollout/accuracy" in series:  # neither an evaluation nor supervised
            read.append((settings(folder), series, folder))
    if not read:
        raise InputError(f"{', '.join(map(str, sources))}: no training run with a finished iteration; give run folders")
    names: dict[str, set[str]] = {}
    for (name, algorithm, _), _, _ in read:
        names.setdefault(name, set()).add(algorithm)
    runs = [
        Run(name if len(names[name]) == 1 else f"{name} · {algorithm}", algorithm, seed, series, folder)
        for (name, algorithm, seed), series, folder in read
    ]
    order = list(study_of(sources).get("cells", {}))
    return sorted(runs, key=lambda r: (order.index(r.label) if r.label in order else len(order), r.label, r.seed))


def settings(folder: Path) -> tuple[str, str, int]:
    """Name, algorithm and seed of a run, from its ``config.yaml``; its folder's name where there is none."""
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = config.get("model") or {}
    algorithm = str(model.get("init_args", model).get("algorithm", "sppo"))
    return str(config.get("run_name") or folder.parent.name), algorithm, int(config.get("seed_everything") or 0)


def study_of(sources: Sequence[Path]) -> Mapping[str, Any]:
    """What ``study.json`` says of the study that the first source belongs to; empty where it belongs to none."""
    for folder in (sources[0].absolute(), *sources[0].absolute().parents) if sources else ():
        if (folder / "study.json").is_file():
            return dict(json.loads((folder / "study.json").read_text(encoding="utf-8")))
    return {}


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by label, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def styles(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """Title and colour of every label: the algorithm's own for its first label, spare colours for further ones."""
    spare, taken, found = iter(SPARE * 9), set(), {}
    for label, group in grouped(runs).items():
        algorithm = group[0].algorithm
        title, color = ALGORITHMS.get(algorithm, (label, ""))
        if not color or algorithm in taken:
            color = next(spare)
        taken.add(algorithm)
        found[label] = (title if label == algorithm else label, color)
    return found
