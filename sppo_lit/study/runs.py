"""Training runs as figures need them: label, algorithm, seed, logged series, and style."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import yaml

from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.errors import InputError
from sppo_lit.study.plan import read_study_json
from sppo_lit.utils.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from sppo_lit.utils.run_log import Series, read_metrics

LOOKS = {
    "sppo": (BLUE, "-"),
    "spo": (SKY, "--"),
    "ppo": (GREEN, "-"),
    "ppo_bce": ("#117733", "--"),
    "vc_ppo": ("#999933", ":"),
    "grpo": (RED, "-"),
    "dr_grpo": (ORANGE, "--"),
    "gspo": ("#882255", ":"),
    "rloo": (PURPLE, "--"),
    "remax": ("#332288", ":"),
    "reinforce": ("#000000", "--"),
    "reinforce_pp": (GREY, "-."),
}
"""Algorithm → colour and line style, the same in every figure.

Okabe & Ito's colours, and Tol's muted ones; relatives of an algorithm, whose colours are close to it, have another line
style, so that no two rows depend on colour alone.
"""

SPARE = (("#AA4499", "-"), ("#661100", "--"), ("#44AA99", "-."), ("#6699CC", ":"), ("#DDCC77", "-"), ("#888888", "--"))
"""Of further cells of an algorithm, and of algorithms that are not in `LOOKS`."""


class Style(NamedTuple):
    """How a label is drawn in figures.

    Attributes:
        title: its name in legends.
        color: hexadecimal.
        line: matplotlib's line style.
    """

    title: str
    color: str
    line: str


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        label: name of the run, with the algorithm if runs of that name differ in it; the same for all seeds.
        algorithm: `model.algorithm`.
        seed: `seed_everything`.
        series: logged metrics, from `read_metrics`.
        folder: run folder; of a run in an archive, the archive.
    """

    label: str
    algorithm: str
    seed: int
    series: Series
    folder: Path


_Identity = tuple[str, str, int]
"""Name, algorithm and seed of a run."""

_Log = tuple[_Identity, Series, Path]
"""A run, what it logged, and where."""


def find_runs(sources: Sequence[Path]) -> list[Run]:
    """Find the training runs in some folders.

    Args:
        sources: run folders, or folders that contain run folders, e.g. that of a study; or archives of a study. A run
            that stands in an archive before is left out, as its name, algorithm and seed say.

    Returns:
        Runs in the order of the study's cells, others by label; each by seed.

    Raises:
        InputError: a source does not exist, an archive or log is damaged, two run folders are alike in name, algorithm
            and seed, or no run has a finished iteration.
    """
    folders: set[Path] = set()
    logs: list[_Log] = []
    known: dict[_Identity, Path] = {}
    for source in sources:
        if source.is_file():
            logs += [log for log in _archived(source) if log[0] not in known]
            known = {run: place for run, _, place in logs}
            continue
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; give run folders, or the folder or archive of a study")
        below = [source] if (source / "metrics.csv").is_file() else [p.parent for p in source.rglob("metrics.csv")]
        for folder in sorted(set(below) - folders):
            try:
                series = read_metrics(folder / "metrics.csv")
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{folder / 'metrics.csv'}: damaged ({error}); resume its run or remove the line"
                ) from error
            if "rollout/accuracy" not in series:  # an evaluation or supervised training
                continue
            run = settings(folder)
            other = known.get(run) if (folder / "config.yaml").is_file() else None
            if other is None:
                known[run] = folder
                logs.append((run, series, folder))
            elif other.is_dir():
                raise InputError(
                    f"{folder} and {other}: both are {run[0]} with seed {run[2]}, and would count as two seeds; give "
                    "one of them, or another run_name in one's config.yaml"
                )
        folders |= set(below)
    if not logs:
        raise InputError(f"{', '.join(map(str, sources))}: no training run with a finished iteration; give run folders")
    names: dict[str, set[str]] = {}
    for (name, algorithm, _), _, _ in logs:
        names.setdefault(name, set()).add(algorithm)
    runs = [
        Run(name if len(names[name]) == 1 else f"{name} · {algorithm}", algorithm, seed, series, folder)
        for (name, algorithm, seed), series, folder in logs
    ]
    order = list(read_study_json(sources[0]).get("cells", {}))
    return sorted(runs, key=lambda r: (order.index(r.label) if r.label in order else len(order), r.label, r.seed))


def _archived(file: Path) -> list[_Log]:
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        return [((run["name"], run["algorithm"], run["seed"]), run["series"], file) for run in runs]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not an archive of runs; 'sppo study … --archive FILE' writes one") from error


def settings(folder: Path) -> _Identity:
    """Name, algorithm and seed of a run from its ``config.yaml``; without one, its folder's name and defaults."""
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = config.get("model") or {}
    algorithm = str(model.get("init_args", model).get("algorithm", "sppo"))
    return str(config.get("run_name") or folder.parent.name), algorithm, int(config.get("seed_everything") or 0)


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by label; labels and runs keep their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def styles(runs: Sequence[Run]) -> dict[str, Style]:
    """Style of every label: that of its algorithm, and one of `SPARE` if that is taken."""
    spare, taken, result = cycle(SPARE), set(), {}
    for label, group in grouped(runs).items():
        algorithm = group[0].algorithm
        title = ALGORITHMS[algorithm].label if algorithm in ALGORITHMS else label
        look = LOOKS.get(algorithm)
        if look is None or algorithm in taken:
            look = next(spare)
        taken.add(algorithm)
        result[label] = Style(title if label == algorithm else label, *look)
    return result
