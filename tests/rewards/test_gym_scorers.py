"""The allow-list of reasoning-gym tasks, checked against the installed package, and answers meant to break scorers."""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

from sppo_lit.problems.gym import GymTask
from sppo_lit.rewards.gym import ALLOWED, REFUSED
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.types import Problem, TaskGold

EVALUATES = {"eval", "exec", "compile", "parse_expr", "sympify", "simplify", "__import__", "open", "system"}
NONSENSE = ("nan", "NaN+NaNj", "inf", "abc", "[]", "{}", "()", "[[]]", "x", "-")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1, deadline=2.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    """Of each allowed task up to twenty, as many as a twentieth of a second makes."""
    states = random.getstate(), json.dumps(np.random.get_state(legacy=False), default=str)
    made: dict[str, list[Problem]] = {}
    for name in sorted(ALLOWED):
        task, end = GymTask(name), time.monotonic() + 0.05
        made[name] = [task.problem(0)]
        while len(made[name]) < 20 and time.monotonic() < end:
            made[name].append(task.problem(len(made[name])))
    assert states == (random.getstate(), json.dumps(np.random.get_state(legacy=False), default=str)), (
        "runs depend on them"
    )
    return made


def reached(function: Callable[..., Any], owner: type, names: set[str]) -> set[str]:
    """All names in a function's source and in that of what it calls in the package."""
    module = sys.modules[function.__module__]
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name and name not in names:
            names.add(name)
            found = getattr(module, name, None) or getattr(owner, name, None)
            if str(getattr(found, "__module__", "")).startswith("reasoning_gym"):
                inside = vars(found).values() if inspect.isclass(found) else [found]
                for part in filter(inspect.isfunction, inside):
                    if "reasoning_gym" in part.__code__.co_filename:  # methods that a dataclass makes have no source
                        reached(part, found if inspect.isclass(found) else owner, names)
    return names


def test_no_allowed_scorer_can_evaluate_text() -> None:
    evaluates = {name for name, (owner, _) in DATASETS.items() if EVALUATES & reached(owner.score_answer, owner, set())}
    assert not evaluates & ALLOWED
    assert evaluates >= {"n_queens", "number_sorting", "countdown", "puzzle24", "bitwise_arithmetic"}, (
        "the scan sees it"
    )


def test_every_task_of_the_installed_version_was_checked() -> None:
    assert set(DATASETS) == ALLOWED | set(REFUSED) and not ALLOWED & set(REFUSED)


def test_own_answers_are_right_and_nonsense_is_not(pool: VerifierPool, problems: dict[str, list[Problem]]) -> None:
    rows = [p for made in problems.values() for p in made]
    verdicts = pool.score([f"So it is \\boxed{{{p.answer}}}." for p in rows], [p.gold for p in rows])
    assert not [
        (p.key, p.answer, v) for p, v in zip(rows, verdicts, strict=True) if (v.reward, v.reason) != (1, "correct")
    ]
    rows = [p for made in problems.values() for p in made[:4]]
    for text in NONSENSE:
        verdicts = pool.score([f"\\boxed{{{text}}}"] * len(rows), [p.gold for p in rows])
        paid = {p.source for p, v in zip(rows, verdicts, strict=True) if v.reward}
        assert not paid, (text, paid)


@pytest.mark.slow
def test_problems_are_the_same_in_another_process(problems: dict[str, list[Problem]]) -> None:
    """Sets of texts are ordered differently there."""
    code = (
        "import sys; from sppo_lit.problems.gym import GymTask\n"
        "for name in sys.argv[1:]: print(repr(GymTask(name).problem(0)))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code, *problems], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [repr(made[0]) for made in problems.values()]


def test_hostile_answers_neither_run_nor_hang_nor_pay(
    pool: VerifierPool, problems: dict[str, list[Problem]], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    hostile = [
        f"__import__('os').system('touch {trap}')",
        f"[__import__('os').system('touch {trap}')]",
        "9**9**9**9",
        "1e999999999",
        "9" * 100_000,
        "[" * 100_000,
        "UD" * 50_000,
        "1\n" * 50_000,
    ]
    golds = [made[0].gold for made in problems.values()]
    golds += [TaskGold(name, {}, problems["chain_sum"][0].task.entry) for name in REFUSED]
    rows = [(f"\\boxed{{{text}}}", gold) for gold in golds for text in hostile]
    start = time.monotonic()
    verdicts = pool.score([text for text, _ in rows], [gold for _, gold in rows])
    assert time.monotonic() - start < 30
    assert {v.reward for v in verdicts} == {0.0} and not trap.exists()
    assert not [gold.task for (_, gold), v in zip(rows, verdicts, strict=True) if v.reason == "timeout"]


def test_the_last_box_decides_as_it_does_in_mathematics(pool: VerifierPool, problems: dict[str, list[Problem]]) -> None:
    sum_ = next(p for p in problems["chain_sum"] if p.answer not in ("1", "2"))
    right = f"\\boxed{{{sum_.answer}}}"
    texts = [
        f"\\boxed{{1}} no, {right}",
        f"{right} or \\boxed{{1}}",
        f"{right}\\boxed{{",
        sum_.answer,
        f"{sum_.answer} or 2",
    ]
    verdicts = pool.score([*texts, "12"], [sum_.gold] * 6, [True] * 5 + [False])
    assert [v.reason for v in verdicts] == ["correct", "wrong", "no_answer", "no_answer", "no_answer", "truncated"]
    assert verdicts[0].rule == "scorer of chain_sum"
