"""The runs of a study in one small file, which every figure of runs reads like the folder that it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from sppo_lit.errors import InputError
from sppo_lit.study.figures.efficiency import SCORE
from sppo_lit.study.plan import read_study_json
from sppo_lit.study.runs import find_runs
from sppo_lit.utils.files import written_whole
from sppo_lit.utils.run_log import Series

KEPT: dict[str, Callable[[Sequence[float]], float]] = {
    "clock/": lambda values: values[-1],
    "rollout/accuracy": lambda values: values[-1],
    SCORE: lambda values: values[-1],
    "time/": sum,
    "memory/": max,
}
"""Beginning of a metric's name → what the iterations from one evaluation to the next leave of it."""


def write_archive(sources: Sequence[Path], file: Path, cells: Sequence[str] | None = None) -> None:
    """Write the metrics of runs at their evaluations, with what is known of their study.

    Args:
        sources: folders of one study, or archives of it, e.g. of other seeds.
        file: JSON to write.
        cells: names of the runs to write; None for all.

    Raises:
        InputError: no run of these has a finished iteration, or none is named in `cells`.
    """
    found = find_runs(sources)
    selected = [run for run in found if cells is None or run.label in cells]
    if not selected:
        names = ", ".join(dict.fromkeys(run.label for run in found))
        raise InputError(f"{sources[0]}: no run is named {' or '.join(cells or ())}; it has {names}")
    runs = [
        {"name": run.label, "algorithm": run.algorithm, "seed": run.seed, "series": thinned(run.series)}
        for run in selected
    ]
    studies = [read_study_json(source) for source in sources]
    made_with = [*dict.fromkeys(entry for study in studies for entry in study.get("made_with", ()))]
    content = {**studies[0], "made_with": made_with, "runs": runs}
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def thinned(series: Series) -> Series:
    """What `KEPT` keeps of a run's metrics, at the iterations of evaluations and the last one."""
    last = max(iterations[-1] for iterations, _ in series.values())
    ends = sorted({*series.get(SCORE, ([], []))[0], last})
    result: Series = {}
    for name, (iterations, values) in series.items():
        merge = next((merge for start, merge in KEPT.items() if name.startswith(start)), None)
        if merge is None:
            continue
        points = zip(iterations, values, strict=True)
        parts = groupby(points, key=lambda point: next(end for end in ends if point[0] <= end))
        kept = [(end, float(f"{merge([value for _, value in part]):.7g}")) for end, part in parts]
        result[name] = ([end for end, _ in kept], [value for _, value in kept])
    return result
