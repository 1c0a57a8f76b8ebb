"""reasoning-gym as a source: problems are functions of their index, mistakes are one line, runs learn and resume."""

from __future__ import annotations

import re
import sys
from operator import add, mul, sub, truediv
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ROOT, recipe, refused
from run_files import csv_rows

from sppo_lit.cli.main import main
from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import held_out
from sppo_lit.problems.gym import GymTask
from sppo_lit.problems.procedural import procedural
from sppo_lit.problems.prompts import BOXED_SUFFIX, Columns
from sppo_lit.problems.sources import hub_id, open_problems

SETTINGS = {"min_terms": 2, "max_terms": 3, "max_digits": 1}
SUMS = {"path": "reasoning_gym/chain_sum", "settings": SETTINGS}
DATA: dict[str, Any] = {
    "data.train": SUMS,
    "data.val": [{**SUMS, "limit": 8}],
    "data.max_prompt_tokens": 160,
}


@pytest.fixture
def gym() -> None:
    pytest.importorskip("reasoning_gym")


def mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path, train: dict[str, Any], *parts: str) -> str:
    return refused(capsys, tmp_path, ["run", recipe(tmp_path, {"data.train": train})], *parts)


def test_a_problem_is_a_function_of_its_index_and_in_one_split_only(gym: None) -> None:
    task = GymTask("chain_sum", SETTINGS)
    first = task.problem(0)
    assert (first.key, first.source, first.answer) == ("reasoning_gym/chain_sum/train/0", "chain_sum", "2")
    assert first.prompt == "State the final answer to the following arithmetic problem: 2 + 0 ="
    train, held_out = ([task.problem(i, split) for i in range(300)] for split in ("train", "val"))
    assert train[0] == first and GymTask("chain_sum", SETTINGS).problem(250) == train[250]
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert all(p.level == 1 + p.prompt.count(" + ") + p.prompt.count(" - ") for p in train)
    assert GymTask("spell_backward").problem(0).gold != GymTask("spell_backward").problem(0).answer


def test_the_shipped_worked_sums_are_right_and_none_is_held_out() -> None:
    problems = list(open_problems("data/worked_sums.jsonl", columns=Columns(solution="solution")))
    assert len({p.prompt for p in problems}) == 64
    for problem in problems:
        text = problem.prompt.removesuffix(f" {BOXED_SUFFIX}")
        assert not held_out(text)
        *lines, box = (problem.solution or "").splitlines()
        running = text.split(": ")[1].split(" ")[0]
        for line in lines:
            first, sign, second, _, result = line.split(" ")
            assert first == running and int(result) == (int(first) + int(second) * (1 if sign == "+" else -1))
            running = result
        assert running == problem.answer and box == f"\\boxed{{{running}}}"
        assert text.count(" + ") + text.count(" - ") == len(lines)


def test_the_shipped_worked_word_problems_are_right() -> None:
    problems = list(open_problems("data/worked_words.jsonl", columns=Columns(solution="solution")))
    assert len({p.prompt for p in problems}) == 64
    for problem in problems:
        *lines, box = (problem.solution or "").splitlines()
        given = set(re.findall(r"\d+", problem.prompt))
        for line in lines:
            first, sign, second, _, result = line.split(" ")
            assert {first, second} <= given
            assert int(result) == {"+": add, "-": sub, "*": mul, "/": truediv}[sign](int(first), int(second))
            given.add(result)
        assert result == problem.answer and box == f"\\boxed{{{result}}}"


def test_levels_are_those_of_the_property_that_varies(gym: None) -> None:
    digits = GymTask("chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 3})
    assert {digits.problem(i).level for i in range(30)} == {1, 2, 3}
    assert GymTask("syllogism").problem(0).level is None


def test_names_are_checked_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    mistake(capsys, tmp_path, {"path": "reasoning_gym/chainsum"}, "no such task", "did you mean", "chain_sum")
    mistake(capsys, tmp_path, {"path": "reasoning_gym/n_queens"}, "not supported", "evaluates text as code")
    mistake(capsys, tmp_path, {"path": "reasoning_gym/graph_color"}, "does not accept its own answers")
    mistake(capsys, tmp_path, {**SUMS, "columns": {"problem": "p"}}, "columns name those of a file's rows")
    mistake(capsys, tmp_path, {"path": "arithmetic", "settings": {"largest": 9}}, "data.arithmetic")
    mistake(capsys, tmp_path, {"path": "gsm8k", "settings": {"largest": 9}}, "gsm8k: settings are those of a generated")
    refused(capsys, tmp_path, ["audit", "reasoning_gym/chain_sum"], "its problems are generated")
    assert hub_id("reasoning_gym/chain_sum") is None and hub_id("reasoning-gym/chain_sum") is not None
    assert procedural("arithmetic") and not procedural("arithmetic/levels") and not procedural("reasoning_gym")


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    refused(capsys, tmp_path, ["run", recipe(tmp_path, DATA)], "reasoning_gym", "pip install 'sppo-lit[gym]'")


def test_bad_settings_are_one_line_with_the_right_ones(
    gym: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, parts in (
        ({"min_term": 2}, ("unknown setting min_term", "did you mean min_terms?", "allow_negation")),
        ({"seed": 2}, ("unknown setting seed", "max_digits")),
        ({"min_terms": 9}, ("bad settings {'min_terms': 9}", "max_terms must be >= min_terms", "min_terms: 2")),
        ({"min_terms": "two"}, ("bad settings {'min_terms': 'two'}", "the defaults are")),
    ):
        mistake(capsys, tmp_path, {**SUMS, "settings": settings}, "reasoning_gym/chain_sum", *parts)
    short = recipe(tmp_path, {**DATA, "data.max_prompt_tokens": 20})
    refused(capsys, tmp_path, ["run", short], "prompts are longer than max_prompt_tokens = 20")
    with pytest.raises(InputError, match="too few different problems"):
        for split in ("train", "val"):  # there is only one
            GymTask("count_bits", {"min_n": 1, "max_n": 1}).problem(0, split)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_interrupted(gym: None, tmp_path: Path) -> None:
    whole, parts = (str(recipe(tmp_path, DATA, f"{name}.yaml")) for name in ("whole", "parts"))
    assert main(["run", whole, "--max_epochs", "3"]) == 0
    assert main(["run", parts, "--max_epochs", "2"]) == 0
    assert main(["run", "fit", parts, "--ckpt_path", "last", "--max_epochs", "3"]) == 0
    (a, *_), (b, *_) = (sorted((tmp_path / "runs").glob(f"*{name}/version_0")) for name in ("whole", "parts"))
    losses = [
        [
            (row["step"], row["policy/loss"], row["critic/loss"])
            for row in csv_rows(run / "metrics.csv")
            if row["policy/loss"]
        ]
        for run in (a, b)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.slow
def test_a_small_model_learns_chain_sums_and_the_doctor_agrees(
    gym: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {**SUMS, "settings": {**SETTINGS, "max_terms": 2}}
    data = {
        **DATA,
        "data.train": two,
        "data.val": [{**two, "limit": 200}],
        "data.problems_per_epoch": 256,
        "data.prompt.suffix": "",  # the model knows no words
        "trainer.max_epochs": 4,
        "trainer.check_val_every_n_epoch": 4,
    }
    warm = {"class_path": "sppo_lit.SupervisedModule", "init_args": {
        "policy": {"path": str(ROOT / "data" / "arithmetic" / "warmstart")},
        "batch": {"minibatch_size": 32},
        "sampling": {"max_new_tokens": 8},
        "policy_optimizer": {"lr": 3e-3},
    }}  # fmt: skip
    assert (
        main(["run", str(recipe(tmp_path, {**data, "model": warm, "data.problems_per_epoch": 512}, "warm.yaml"))]) == 0
    )
    (policy,) = (tmp_path / "runs").glob("*warm/version_0/hf/policy")
    sppo = recipe(
        tmp_path,
        {
            **data,
            "model.policy": {"path": str(policy)},
            "model.batch.minibatch_size": 64,
            "model.policy_optimizer.lr": 3e-4,
            "model.critic_optimizer.lr": 1e-3,
        },
    )
    assert main(["doctor", str(sppo)]) == 1
    screen = capsys.readouterr().out
    assert "300 of 300 gold answers" in screen
    assert "1 of 11 checks is bad" in screen and "a prompt decodes to another text" in screen, "it has no letters"
    assert main(["run", str(sppo)]) == 0
    (run,) = (tmp_path / "runs").glob("*tiny/version_0")
    greedy = [float(row["val/accuracy"]) for row in csv_rows(run / "metrics.csv") if row.get("val/accuracy")]
    assert 0.2 < greedy[0] < greedy[-1] - 0.05
