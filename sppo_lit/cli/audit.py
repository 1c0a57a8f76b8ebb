"""Audit of a data set before a run: gold answers that cannot be matched, and saved verdicts that change."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sppo_lit.errors import InputError
from sppo_lit.rewards.accepted import read_accepted
from sppo_lit.rewards.math.answers import gold_error
from sppo_lit.rewards.math.equivalence import ambiguity
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.types import Problem
from sppo_lit.utils.command import CommandParser

READABLE = "sppo_lit.rewards.math.answers:readable"
KINDS = {
    "unparsable": "the gold answer cannot be read: no answer can be right",
    "not_itself": "the gold answer in \\boxed{} does not equal the gold answer",
    "ambiguous": "the gold answer can be read in two formats",
    "conflict": "the same problem has another gold answer elsewhere",
}


@dataclass(frozen=True)
class Finding:
    """A problem with a defect.

    Attributes:
        key: key of the problem.
        kind: one of `KINDS`.
        gold: its gold answer.
        detail: the reason.
    """

    key: str
    kind: str
    gold: str
    detail: str


@dataclass(frozen=True)
class Disagreement:
    """A saved completion whose verdict differs from the one recorded.

    Attributes:
        line: 1-based line in the file.
        key: key of the problem.
        gold: gold answer.
        answer: answer extracted from the completion, if any.
        recorded: reward in the file.
        reward: reward now.
        reason: reason of the verdict now.
    """

    line: int
    key: str
    gold: str
    answer: str | None
    recorded: float
    reward: float
    reason: str


@dataclass
class AuditReport:
    """Result of an audit.

    Attributes:
        rows: problems read.
        dropped: rows dropped by the source, by reason.
        findings: defects, in the order of the rows.
        completions: saved completions scored again.
        disagreements: completions whose verdict changed.
        reasons: number of completions by the reason of their verdict.
        seconds: wall-clock time of the audit.
    """

    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    completions: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def unusable(self) -> int:
        """Number of rows whose gold answer cannot be matched: unparsable, or not equal to itself."""
        return len({f.key for f in self.findings if f.kind in ("unparsable", "not_itself")})

    def to_json(self) -> dict[str, Any]:
        """The report as JSON objects."""
        return {**asdict(self), "unusable": self.unusable}

    def write(self, path: Path) -> None:
        """Write `to_json` to a file.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the report {path}: {error.strerror}") from error


def audit(
    problems: Iterable[Problem],
    completions: Path | str | None = None,
    *,
    dropped: Mapping[str, int] | None = None,
    workers: int = 2,
    deadline: float = 5.0,
) -> AuditReport:
    """Check every gold answer and score saved completions again.

    Args:
        problems: problems of any source.
        completions: JSON lines with ``text`` (or ``response``), the ``reward`` recorded, and ``gold``, or ``problem``
            (the key of a problem) instead of gold; ``finished`` is True by default. The files that the evaluation
            writes have this format.
        dropped: rows dropped by the source, by reason.
        workers: number of worker processes.
        deadline: seconds for each answer.

    Raises:
        InputError: a line of `completions` is not a JSON object, or lacks text, reward or gold; or there are none.
    """
    start = time.monotonic()
    rows = list(problems)
    golds_by_key = {p.key: p.answer for p in rows}
    saved = [] if completions is None else list(_read_completions(Path(completions), golds_by_key))
    if completions is not None and not saved:
        raise InputError(f"{completions}: no completions in it; give JSON lines with text, reward and gold")
    report = AuditReport(rows=len(rows), dropped=dict(dropped or {}))
    with VerifierPool(workers, deadline, functions=[READABLE]) as pool:
        golds = [p.answer for p in rows]
        boxed = [f"\\boxed{{{gold}}}" for gold in golds]
        verdicts, parsable = pool.score(boxed, golds), pool.custom(boxed, golds)[READABLE]
        first: dict[str, Problem] = {}
        for problem, verdict, readable in zip(rows, verdicts, parsable, strict=True):
            defects = _defects(problem, verdict.reward, verdict.reason, readable, first)
            report.findings += [Finding(problem.key, kind, problem.answer, why) for kind, why in defects if why]
        _score_again(report, pool, saved)
    report.seconds = time.monotonic() - start
    return report


def _defects(
    problem: Problem, reward: float, reason: str, readable: float, first: dict[str, Problem]
) -> Iterator[tuple[str, str]]:
    other = first.setdefault(problem.prompt, problem)
    if not readable > 0:  # also where it is NaN: there was no result within the deadline
        yield "unparsable", gold_error(problem.answer) or "neither mathematics nor words"
    elif reward != 1:
        yield "not_itself", reason
    yield "ambiguous", ambiguity(problem.answer)
    if other.answer != problem.answer:
        yield "conflict", f"{other.answer} in {other.key}"


def _score_again(report: AuditReport, pool: VerifierPool, saved: list[dict[str, Any]]) -> None:
    verdicts = pool.score([s["text"] for s in saved], [s["gold"] for s in saved], [s["finished"] for s in saved])
    report.completions = len(saved)
    report.reasons = dict(Counter(v.reason for v in verdicts))
    for item, verdict in zip(saved, verdicts, strict=True):
        if (item["reward"] > 0) != (verdict.reward > 0):
            report.disagreements.append(
                Disagreement(
                    item["line"],
                    item["key"],
                    item["gold"],
                    verdict.answer,
                    item["reward"],
                    verdict.reward,
                    verdict.reason,
                )
            )


def _read_completions(path: Path, golds: dict[str, str]) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"cannot read completions {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg}); each line must be one completion") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: not a JSON object; each line must be one completion")
        key = str(row.get("problem", ""))
        text, gold, reward = row.get("text", row.get("response")), row.get("gold", golds.get(key)), row.get("reward")
        if not isinstance(text, str) or gold is None or not isinstance(reward, (int, float)):
            raise InputError(f"{where}: needs 'text', 'reward' and 'gold' (or the key of a known 'problem')")
        finished = bool(row.get("finished", True))
        yield {"line": number, "key": key, "text": text, "gold": str(gold), "reward": reward, "finished": finished}


def show(report: AuditReport, console: Console, limit: int = 20) -> None:
    """Print a summary, then at most `limit` rows of each kind of finding and of the disagreements."""
    kinds = Counter(f.kind for f in report.findings)
    share = report.unusable / report.rows if report.rows else 0.0
    console.print(
        f"[bold]{report.rows:,}[/bold] rows in {report.seconds:.1f} s: [bold]{report.unusable:,}[/bold] with a gold "
        f"answer that nothing can match ({100 * share:.2f} %)"
    )
    if report.dropped:
        console.print("left out: " + ", ".join(f"{n:,} {reason}" for reason, n in report.dropped.items()))
    for kind, meaning in KINDS.items():
        findings = [f for f in report.findings if f.kind == kind]
        if findings:
            table = Table(
                "row", "gold answer", "why", title=Text(f"{kinds[kind]:,} {kind}: {meaning}"), title_justify="left"
            )
            for f in findings[:limit]:
                table.add_row(Text(f.key), Text(f.gold[:80]), Text(f.detail[:100]))
            console.print(table)
            if len(findings) > limit:
                console.print(f"  … and {len(findings) - limit:,} more; the JSON report has all")
    if report.completions:
        counts = ", ".join(f"{n:,} {reason}" for reason, n in sorted(report.reasons.items(), key=lambda item: -item[1]))
        console.print(
            f"[bold]{report.completions:,}[/bold] completions scored again ({counts}): "
            f"[bold]{len(report.disagreements):,}[/bold] verdicts differ from those recorded"
        )
    if report.disagreements:
        table = Table("line", "problem", "gold answer", "answer", "recorded", "now", "reason")
        for d in report.disagreements[:limit]:
            cells = (d.line, d.key, d.gold[:60], (d.answer or "–")[:60], d.recorded, d.reward, d.reason)
            table.add_row(*(Text(str(cell)) for cell in cells))
        console.print(table)


def show_accepted(path: Path, console: Console, limit: int = 10) -> None:
    """Print the accepted answers that a run has kept (`model.verifier.audit`), by rule, the rarest rule first.

    Args:
        path: of the file.
        console: to print to.
        limit: answers shown of each rule; the latest ones.

    Raises:
        InputError: the file cannot be read.
    """
    entries = list(read_accepted(path))
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_rule.setdefault(entry["rule"] or "not stated", []).append(entry)
    console.print(f"[bold]{len(entries):,}[/bold] accepted answers that are not the gold answer to the letter")
    for rule, kept in sorted(by_rule.items(), key=lambda item: len(item[1])):
        table = Table("gold answer", "answer", title=Text(f"{len(kept):,} by {rule}"), title_justify="left")
        for gold, answer in list(dict.fromkeys((e["gold"], e["answer"]) for e in kept))[-limit:]:
            table.add_row(Text(gold[:80]), Text(answer[:100]))
        console.print(table)


class _ShowAccepted(argparse.Action):
    """As ``--help``: prints, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> None:
        show_accepted(values[1], Console(highlight=False))
        parser.exit()


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of `sppo audit`: dataset, completions, json, split, limit.

    Raises:
        InputError: an unknown flag or a missing data set; accepted answers that cannot be read.
        SystemExit: after the accepted answers have been shown.
    """
    parser = CommandParser(prog="sppo audit", description="Check the gold answers of a data set, and saved verdicts.")
    parser.add_argument(
        "dataset", metavar="DATASET", help="a name such as gsm8k, a Hub id, a file, a folder or FILE.py:FUNCTION"
    )
    parser.add_argument("--completions", type=Path, metavar="FILE", help="JSON lines to score again")
    parser.add_argument(
        "--accepted", type=Path, metavar="FILE", action=_ShowAccepted,
        help="show the accepted answers that a run kept in this file (model.verifier.audit), and exit",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the full report to this file")
    parser.add_argument("--split", metavar="S", help="split to read")
    parser.add_argument("--limit", type=int, metavar="N", help="read at most N problems")
    return parser.parse_args(list(arguments))
