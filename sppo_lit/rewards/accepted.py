"""A second look at what is paid: a sample of accepted answers that are not the gold answer to the letter."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.types import Verdict

_FIRST = 100  # of each combination of rules, all are kept up to here
_EVERY = 100  # and then one in so many


class AcceptedLog:
    """Appends accepted answers to a file of JSON lines: ``rule``, ``gold``, ``answer``.

    Of each combination of rules the first hundred are kept, then one in a hundred, chosen by their text; so a rule
    that is rarely used is seen whole, and the file stays small. Several processes may write to one file.

    Args:
        path: of the file; its folder is made.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.counts: Counter[str] = Counter()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(f"model.verifier.audit {path}: cannot be written ({error.strerror})") from error

    def add(self, golds: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Keep what is to be kept of these verdicts."""
        lines = []
        for gold, verdict in zip(golds, verdicts, strict=True):
            answer = verdict.answer
            if verdict.reward <= 0 or answer is None or answer.strip() == gold.strip():
                continue
            self.counts[verdict.rule] += 1
            chosen = zlib.crc32(f"{gold}\0{answer}".encode("utf-8", "replace")) % _EVERY == 0
            if self.counts[verdict.rule] <= _FIRST or chosen:
                lines.append(json.dumps({"rule": verdict.rule, "gold": gold, "answer": answer}) + "\n")
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def read_accepted(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file written by `AcceptedLog`.

    Raises:
        InputError: the file cannot be read, or a line is not an entry.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"cannot read accepted answers {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            yield {key: str(entry[key]) for key in ("rule", "gold", "answer")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not an accepted answer (rule, gold, answer)") from error
