"""The arithmetic task: right solutions, disjoint splits, and a stream that any position can be reached of."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import ArithmeticTask

BASE = Path(__file__).resolve().parents[2] / "data" / "arithmetic" / "base"
LONG = ArithmeticTask(10, 14, modulus=10)


def evaluate(text: str, modulus: int | None = None) -> tuple[int, list[int]]:
    """Value of an expression and all numbers on the way, read by Python's own parser."""
    met: list[int] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            result = node.value
        else:
            assert isinstance(node, ast.BinOp)
            left, right = value(node.left), value(node.right)
            result = {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}[type(node.op)]
        result = result % modulus if modulus and isinstance(node, ast.BinOp) else result
        met.append(result)
        return result

    return value(ast.parse(text, mode="eval").body), met


def operations(text: str) -> int:
    return len(re.findall(r"[-+*]", text))


@pytest.mark.parametrize(
    "task",
    [
        ArithmeticTask(),
        ArithmeticTask(1, 5, largest=50),
        LONG,
        ArithmeticTask(2, 4, modulus=7),
        ArithmeticTask(8, 12, modulus=[5, 20]),
    ],
)
def test_every_line_keeps_the_value_and_takes_one_operation_away(task: ArithmeticTask) -> None:
    for i in range(150):
        problem = task.problem(i)
        expression, *rest = problem.prompt.removesuffix("=").split(" mod ")
        modulus = int(rest[0]) if rest else None
        value, met = evaluate(expression, modulus)
        assert problem.answer == str(value)
        several = isinstance(task.modulus, list)
        assert (several and modulus in task.modulus) or modulus == task.modulus
        count = problem.level - 100 * modulus if several else problem.level
        assert operations(expression) == count
        assert min(met) >= 0 and max(met) <= (task.largest if modulus is None else max(9, modulus - 1))
        *lines, last = problem.solution.split("\n")
        assert last == f"\\boxed{{{value}}}"
        for line, left in zip([expression, *lines], range(count, 0, -1), strict=True):
            assert evaluate(line, modulus)[0] == value and operations(line) == left


def test_splits_share_no_problem_and_any_position_is_reached_directly() -> None:
    task = ArithmeticTask(1, 2)
    train, held_out = ({task.problem(i, split).prompt for i in range(1500)} for split in ("train", "val"))
    assert not train & held_out and len(held_out) > 100
    assert task.problem(10**12) == ArithmeticTask(1, 2).problem(10**12) != task.problem(10**12 + 1)
    keys = [task.problem(i, split).key for i in range(50) for split in ("train", "val")]
    assert len(set(keys)) == 100
    other = ArithmeticTask(1, 2, seed=1)
    assert [task.problem(i).prompt for i in range(9)] != [other.problem(i).prompt for i in range(9)]


def test_levels_are_uniform() -> None:
    counts = Counter(ArithmeticTask(1, 6).problem(i).level for i in range(1200))
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert max(abs(n - 200) for n in counts.values()) < 60, counts


def test_hasty_solutions_are_the_box_alone_and_change_nothing_else() -> None:
    plain, hasty = ArithmeticTask(3, 5), ArithmeticTask(3, 5, hasty=0.7)
    alone = 0
    for i in range(300):
        a, b = plain.problem(i), hasty.problem(i)
        assert (a.prompt, a.answer) == (b.prompt, b.answer)
        if b.solution != a.solution:
            assert b.solution == f"\\boxed{{{a.answer}}}"
            alone += 1
    assert 0.6 < alone / 300 < 0.8


def test_the_long_horizon_setting_asks_for_long_responses() -> None:
    problems = [LONG.problem(i) for i in range(200)] + [ArithmeticTask(8, 9, modulus=10).problem(i) for i in range(20)]
    assert all(len(p.solution) == 2 * p.level * (p.level - 1) + 9 for p in problems), "as documented: the level decides"
    lengths = [len(p.solution) for p in problems[:200]]
    assert (min(lengths), max(lengths)) == (189, 373)


@pytest.mark.parametrize("bounds", [(0, 3), (4, 3), (-1, -1)])
def test_impossible_numbers_of_operations_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="min_operations"):
        ArithmeticTask(*bounds)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("largest", 0),
        ("largest", -3),
        ("modulus", 0),
        ("modulus", -5),
        ("modulus", []),
        ("modulus", [10, 1]),
        ("hasty", 1.5),
        ("hasty", -0.1),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"arithmetic.*{setting}"):
        ArithmeticTask(**{setting: value})


def test_the_tokenizer_beside_it_knows_every_character() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for task in (ArithmeticTask(1, 6), LONG):
        for i in range(60):
            problem = task.problem(i)
            for text in (problem.prompt, problem.solution):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == text
