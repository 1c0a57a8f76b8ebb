"""Responses of evaluations on disk: the file of a finished one, and a journal to resume an interrupted one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo_lit.training.metrics import GREEDY
from sppo_lit.types import Problem, Scored, Verdict
from sppo_lit.utils.files import written_whole

SETTINGS = "unfinished.json"
"""File in the folder of an unfinished evaluation: the settings that its responses depend on."""


def line_of(s: Scored) -> dict[str, object]:
    """A response as one JSON object."""
    return {
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


def scored_of(line: Mapping[str, Any], problem: Problem) -> Scored | None:
    """The response of a JSON object; None if it answers another problem."""
    if (line["prompt"], line["gold"]) != (problem.prompt, problem.answer):
        return None
    verdict = Verdict(line["reward"], line["reason"], line["answer"])
    known = {key: line.get(key) for key in ("value", "values")}
    return Scored(problem, line["text"], line["tokens"], verdict, line["sample"], line["finished"], **known)


def write_completions(path: Path, responses: Iterable[Scored]) -> None:
    """Write one JSON object per line and response, ordered by problem and sample, without duplicates."""
    unique = {(s.problem.key, s.sample): s for s in responses}
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        for s in (unique[key] for key in sorted(unique)):
            file.write(json.dumps(line_of(s), ensure_ascii=False) + "\n")


class Journal:
    """Finished responses of a running evaluation: each rank appends to a file of its own for each set.

    Args:
        folder: folder of the run's evaluations.
        names: file name of each set, without suffix.
        rank: rank of this process.
    """

    def __init__(self, folder: Path, names: Sequence[str], rank: int) -> None:
        self._folder, self._names, self._rank = folder, names, rank
        self._lines: list[dict[tuple[str, int], dict[str, Any]]] = [{} for _ in names]

    def begin(self, settings: Mapping[str, object], fresh: bool = False) -> None:
        """On rank zero, before any rank reads: delete responses of other settings and incomplete lines.

        Args:
            settings: settings that the responses depend on, as JSON values.
            fresh: delete all responses.
        """
        if fresh or unfinished_settings(self._folder) != settings:
            self.end()
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._folder / SETTINGS) as temporary:
                temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        for part in self._parts():
            with part.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def read(self) -> int:
        """Read the responses of all ranks on disk; returns their number."""
        for lines, name in zip(self._lines, self._names, strict=True):
            for part in self._parts(name):
                for text in part.read_bytes().split(b"\n"):
                    try:
                        line = json.loads(text)
                        lines[line["problem"], line["sample"]] = line
                    except (ValueError, KeyError, TypeError):
                        continue  # damaged: sampled again
        return sum(map(len, self._lines))

    def find(self, number: int, problem: Problem, sample: int) -> Scored | None:
        """The response on disk to a problem of set `number`, if there is one."""
        line = self._lines[number].get((problem.key, sample))
        return None if line is None else scored_of(line, problem)

    def append(self, number: int, responses: Iterable[Scored]) -> None:
        """Write the responses that are not on disk yet, and flush them to the disk."""
        new = [s for s in responses if self.find(number, s.problem, s.sample) is None]
        if new:
            text = "".join(json.dumps(line_of(s), ensure_ascii=False) + "\n" for s in new)
            with (self._folder / f"{self._names[number]}.rank{self._rank}.part").open("ab") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())

    def end(self) -> None:
        """On rank zero: delete the journal."""
        for path in (*self._parts(), self._folder / SETTINGS):
            path.unlink(missing_ok=True)

    def _parts(self, name: str = "*") -> list[Path]:
        return sorted(self._folder.glob(f"{name}.rank*.part"))


def unfinished_settings(folder: Path) -> object:
    """Settings of the unfinished evaluation in a folder; None if there is none."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def has_unfinished(folder: Path) -> bool:
    """Whether an unfinished evaluation has left responses in a folder."""
    return any(folder.glob("*.rank*.part"))
