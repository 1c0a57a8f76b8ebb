"""Reading the responses of evaluations that runs have written to disk."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.training.metrics import GREEDY

Record = dict[str, Any]
"""One response, a line of the file: `problem`, `level`, `sample`, `reward`, `value`, `values` …"""


def read(source: Path) -> list[Record]:
    """Read the responses of one evaluation.

    Args:
        source: a JSONL file, or a run folder: all sets of its latest evaluation.

    Raises:
        InputError: there is no such file or evaluation, or a line is not a response.
    """
    records: list[Record] = []
    for file in files(source):
        for number, line in enumerate(file.read_bytes().rstrip(b"\n").split(b"\n"), start=1):
            try:
                record = json.loads(line)
                problem, sample, reward = f"{file.stem} {record['problem']}", record["sample"], record["reward"]
                records.append({**record, "problem": problem, "sample": sample, "reward": reward})
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{file}, line {number}: no response of an evaluation; give a file of a run's evaluations folder"
                ) from None
    if not records:
        raise InputError(f"{source}: no responses in it; give a file of a run's evaluations folder")
    return records


def files(source: Path) -> list[Path]:
    """Files of an evaluation: the source itself, or those of the latest evaluation in a run folder.

    Raises:
        InputError: there is no such file or evaluation.
    """
    if source.is_file():
        return [source]
    matches = {p: re.fullmatch(r".+-iteration-(\d+)\.jsonl", p.name) for p in (source / "evaluations").glob("*.jsonl")}
    iterations = {p: int(match[1]) for p, match in matches.items() if match}
    if not iterations:
        raise InputError(f"{source}: no such file, and no run folder with finished evaluations; give one of them")
    return sorted(p for p, i in iterations.items() if i == max(iterations.values()))


def samples(records: Sequence[Record]) -> list[Record]:
    """The sampled responses, or the greedy ones if none was sampled."""
    sampled = [r for r in records if r["sample"] != GREEDY]
    return sampled or list(records)


def labels(sources: Sequence[Path]) -> dict[str, Path]:
    """Label of each source in a figure → the source; by more of its folders where they would else be alike."""
    distinct = {source.resolve(): source for source in sources}
    depth = 2
    named = {label(source): source for source in distinct.values()}
    while len(named) < len(distinct):
        depth += 1
        named = {"/".join(path.parts[-depth:]): source for path, source in distinct.items()}
    return named


def label(source: Path) -> str:
    """Label of a source in a figure: the run, and the set if a single file was given."""
    if source.is_file() and source.parent.name == "evaluations":
        return f"{source.parts[-4]}/{source.parts[-3]} · {source.stem}" if len(source.parts) > 3 else source.stem
    return source.stem if source.is_file() else "/".join(source.resolve().parts[-2:])
