"""The report of a study: an HTML page with all figures that its runs allow, and their numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.study.figures.specs import FIGURES, FigureSpec
from sppo_lit.study.plan import flag_value, read_study_json
from sppo_lit.study.protocols import PROTOCOLS
from sppo_lit.study.responses import files
from sppo_lit.study.runs import find_runs
from sppo_lit.study.tables import TextTable, finite, tables
from sppo_lit.utils.console import duration


def write_report(out: Path) -> Path:
    """Draw the figures of a study and write its page and numbers.

    Args:
        out: folder of the study.

    Returns:
        ``<out>/report/index.html``; beside it are ``numbers.json`` and a PNG and an SVG of each figure.

    Raises:
        InputError: no run has a finished iteration.
    """
    from jinja2 import Environment

    runs = find_runs([out])
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    language = any("rollout/response_length" in run.series for run in runs)
    elsewhere = {"gradients", "control runs", "studies", *(["control studies"] if language else [])}
    for name, spec in FIGURES.items():
        if spec.reads in elsewhere:
            continue
        try:
            drawn[name] = spec.draw(sources(out, spec), folder / f"{name}.png")
        except InputError as error:
            missing[name] = f"{name}: {str(error).removeprefix(f'{name}: ')}"
    study = read_study_json(out)
    last_values = {
        f"{run.label}, seed {run.seed}": {
            "iterations": int(run.series["rollout/accuracy"][0][-1]),
            "training accuracy": run.series["rollout/accuracy"][1][-1],
            "held-out accuracy": run.series.get("val/accuracy", ([], [math.nan]))[1][-1],
        }
        for run in runs
    }
    cells = [[cell, flags_of({**study.get("common", {}), **flags})] for cell, flags in study.get("cells", {}).items()]
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    html = page.render(
        title=study.get("title", out.name),
        recipe=study.get("recipe"),
        budget=", ".join(budget(unit, value) for unit, value in study.get("budget", {}).items()),
        baseline=study.get("baseline"),
        made_with=study.get("made_with", []),
        protocol=PROTOCOLS.get(study.get("protocol", "")),
        figures=[
            (name, FIGURES[name].about, tables(numbers, units=FIGURES[name].units)) for name, numbers in drawn.items()
        ],
        missing=missing,
        cells=TextTable("Cells", ["cell", "flags"], cells),
        runs=tables(last_values, "Runs", dict.fromkeys(("training accuracy", "held-out accuracy"), "%")),
    )
    (folder / "numbers.json").write_text(json.dumps(finite(drawn), indent=1), encoding="utf-8")
    (folder / "index.html").write_text(html, encoding="utf-8")
    return folder / "index.html"


def sources(out: Path, spec: FigureSpec) -> list[Path]:
    """Sources of a figure in a study: its folder, or one evaluation of each cell, that of the first seed.

    Args:
        out: folder of the study.
        spec: the figure.

    Raises:
        InputError: no evaluation has the field that the figure needs.
    """
    if spec.reads != "evaluations":
        return [out]
    seeds = read_study_json(out).get("seeds", [])
    folders = sorted(out.glob(f"after/*/seed-{seeds[0] if seeds else '*'}/*/version_*"))
    cells = {folder.parent.name: folder for folder in reversed(folders) if has_field(folder, spec.field)}
    if not cells:
        raise InputError(f"no evaluation has the critic's {spec.field}; add one to the study's 'after'")
    return [cells[name] for name in sorted(cells)]


def has_field(run: Path, field: str) -> bool:
    """Whether the responses of a run's latest evaluation have a field that is not null."""
    try:
        with files(run)[0].open(encoding="utf-8") as opened:
            return json.loads(opened.readline()).get(field) is not None
    except (InputError, ValueError):
        return False


def budget(unit: str, amount: float) -> str:
    """``5:00 min of training``, ``2,000,000 sampled tokens``."""
    return f"{duration(amount)} of training" if unit == "seconds" else f"{amount:,.0f} sampled {unit}"


def flags_of(flags: Mapping[str, Any]) -> str:
    """Flags of a cell in one line."""
    return ", ".join(f"{key}: {flag_value(value)}" for key, value in flags.items())
