"""How often the verifier and `math_verify`, called directly, differ on responses as models write them.

    python benchmarks/bench_agreement.py --golds shared/datasets [--completions FILE ...] [--per-set 400] [--show 50]

Responses are the completions in the files given (JSON lines with ``text`` and ``gold``, as evaluations write them) and
variations of the gold answers of every set: rewritten as models write (display fractions, units, names, dollar signs),
changed in value, and hedged. Both sides judge the same text. The table counts agreements and differences by set;
`--show` prints so many of the differences, drawn at random, to be judged by eye.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sppo_lit.problems.sources import open_problems
from sppo_lit.rewards.verifier import VerifierPool

SETS = {
    "GSM8K": "gsm8k/test.jsonl",
    "SVAMP": "svamp/test.jsonl",
    "MATH500": "benchmarks/math500.parquet",
    "Minerva": "benchmarks/minerva.parquet",
    "DeepScaleR": "deepscaler/math.json",
}
Row = tuple[str, str, str]  # set, response, gold answer


def rewritten(gold: str, at: random.Random) -> str:
    """The gold answer as a model may write it; the value stays."""
    forms = [
        lambda s: s,
        lambda s: f"${s}$",
        lambda s: s.replace("\\frac", "\\dfrac"),
        lambda s: s.replace("\\left", "").replace("\\right", ""),
        lambda s: f"{s}\\%" if s.isdigit() else f"\\mathbf{{{s}}}",
        lambda s: f"{s}\\text{{ apples}}" if s.isdigit() else f"f(x) = {s}",
        lambda s: f"{s} = {s}",
        lambda s: f"({s})",
        lambda s: re.sub(r"([+=,-])", r" \1 ", s),
        lambda s: f"\\displaystyle {s}",
        lambda s: re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"\1/\2", s),
        lambda s: re.sub(r"(?<![\\\d.,])(\d+)(?![\d.,])", r"\1.0", s, count=1) if s.isdigit() else s,
        lambda s: f"{int(s):,}" if s.isdigit() else s,
        lambda s: f"{s}\\text{{ units}}" if s.isdigit() else s,
        lambda s: f"\\${s}" if s.isdigit() else f"x = {s}",
        lambda s: f"\\text{{{s}}}" if s.isalnum() else s,
    ]
    return at.choice(forms)(gold)


def hedged(gold: str, at: random.Random) -> str:
    """The gold answer and something else."""
    other = changed(gold, at)
    joins = [
        r"{} \text{{ or }} {}",
        r"{}, {}",
        r"{} \approx {}",
        r"{} = {}",
        r"{} \text{{ perhaps }} {}",
        "{} ({})",
        r"{} + {}",
    ]
    return at.choice(joins).format(*at.sample([gold, other], 2))


def changed(gold: str, at: random.Random) -> str:
    """The gold answer with another digit or sign: another value, or a rounding of it."""
    places = [m.start() for m in re.finditer(r"\d", gold)]
    if not places:
        return f"-{gold}"
    i = at.choice(places)
    return gold[:i] + str((int(gold[i]) + at.randint(1, 9)) % 10) + gold[i + 1 :]


def variations(folder: Path, per_set: int) -> Iterator[Row]:
    """Responses made from the gold answers of the sets that are there."""
    at = random.Random(0)
    for name, path in SETS.items():
        if (folder / path).exists():
            problems = list(open_problems(str(folder / path), skip_bad_rows=True).problems())
            for problem in at.sample(problems, min(per_set, len(problems))):
                vary = at.choices([rewritten, changed, hedged], [6, 2, 2])[0]
                answer = vary(problem.answer, at)
                yield (
                    f"{name}, golds {vary.__name__}",
                    f"Adding up, the answer is $\\boxed{{{answer}}}$.",
                    problem.answer,
                )


def completions(paths: list[Path]) -> Iterator[Row]:
    """Responses that models wrote."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield path.stem, row["text"], str(row["gold"])


def direct(response: str, gold: str) -> bool:
    """What math_verify says, called as its documentation does; what it raises counts as wrong."""
    from math_verify import parse, verify

    try:
        return bool(verify(parse(f"\\boxed{{{gold}}}", parsing_timeout=5), parse(response, parsing_timeout=5)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # its TimeoutException is no Exception
        return False


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--golds", type=Path, required=True, help="folder of problem sets")
    parser.add_argument("--completions", type=Path, nargs="*", default=[], help="JSON lines with text and gold")
    parser.add_argument("--per-set", type=int, default=400, help="variations of each set (default 400)")
    parser.add_argument("--show", type=int, default=50, help="differences to print (default 50)")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rows = [*variations(args.golds, args.per_set), *completions(args.completions)]
    with VerifierPool(workers=1) as pool:
        ours = [v.reward > 0 for v in pool.score([r for _, r, _ in rows], [g for *_, g in rows])]
    theirs = [direct(response, gold) for _, response, gold in rows]
    counts: dict[str, Counter[tuple[bool, bool]]] = {}
    for (name, *_), mine, other in zip(rows, ours, theirs, strict=True):
        counts.setdefault(name, Counter())[mine, other] += 1
    console = Console(width=130)
    table = Table("responses", "number", "both accept", "neither", "only the verifier", "only math_verify", "differ")
    for name, count in counts.items():
        differ, total = count[True, False] + count[False, True], count.total()
        cells = (total, count[True, True], count[False, False], count[True, False], count[False, True])
        table.add_row(name, *(f"{cell:,}" for cell in cells), f"{differ / total:.1%}")
    console.print(table)
    different = [(*row, mine) for row, mine, other in zip(rows, ours, theirs, strict=True) if mine != other]
    for name, response, gold, mine in random.Random(0).sample(different, min(args.show, len(different))):
        verdict = "accepted by the verifier" if mine else "accepted by math_verify"
        console.print(f"{verdict}: gold {gold!r}, response ends {response[-80:]!r} ({name})", markup=False)


if __name__ == "__main__":
    main()
