"""`sppo score` on the critic of a real run, and that critic as the start of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import recipe, refused
from run_files import csv_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sppo_lit.cli.main import main
from sppo_lit.utils.console import console

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with prompts of its own and an evaluation."""
    changes = {"data.prompt": {"template": "so {problem}"}, "data.val": [{"path": "arithmetic", "limit": 30}]}
    folder = tmp_path_factory.mktemp("trained")
    assert main(["run", str(recipe(folder, changes))]) == 0
    return folder / "runs" / "tiny" / "version_0"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(dataset: object, run: Path, out: Path, *flags: str) -> list[dict[str, Any]]:
    assert main(["score", str(dataset), "--critic", str(run / "hf" / "critic"), "--out", str(out), *flags]) == 0
    return lines(out)


@torch.no_grad()
def values(run: Path, prompts: list[str]) -> list[float]:
    """sigmoid(logit) of each prompt by itself, as anybody would load the export."""
    tokenizer = AutoTokenizer.from_pretrained(run / "hf" / "critic")
    model = AutoModelForSequenceClassification.from_pretrained(run / "hf" / "critic")
    return [float(torch.sigmoid(model(**tokenizer(text, return_tensors="pt")).logits)) for text in prompts]


def test_every_problem_gets_the_value_of_the_prompt_that_the_recipe_would_make(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    rows = [{"sum": f"{i}+{i * i}=", "answer": str(i + i * i), "level": i} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {"path": str(file), "columns": {"problem": "sum"}, "prompt": {"template": "so {problem}", "suffix": ""}}
    known = recipe(tmp_path, {"data.val": [own]}, "known.yaml")
    scored = score(file, run, tmp_path / "scores.jsonl", "--tokens", "64", "--recipe", str(known))
    assert [s["problem"] for s in scored] == [f"so {row['sum']}" for row in rows]
    assert [(s["answer"], s["level"]) for s in scored] == [(row["answer"], row["level"]) for row in rows]
    assert len({s["key"] for s in scored}) == 9 == len({s["value"] for s in scored})
    assert [s["value"] for s in scored] == pytest.approx(values(run, [s["problem"] for s in scored]), abs=2e-6)


def test_outcomes_of_an_evaluation_tell_how_good_the_values_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--split", "val", "--limit", "30", "--outcomes")
    capsys.readouterr()
    scored = score("arithmetic", run, tmp_path / "scores.jsonl", *flags, str(run))
    said = capsys.readouterr().out
    outcomes = {line["problem"]: line["reward"] for line in lines(run / "evaluations" / "arithmetic-iteration-2.jsonl")}
    brier = sum((s["value"] - outcomes[s["key"]]) ** 2 for s in scored) / 30
    assert f"prompts: as in {run / 'config.yaml'}" in said and "30 problems, mean V" in said
    assert f"against 30 problems × 1 responses: base rate {sum(outcomes.values()) / 30:.3f}" in said
    assert f"brier {brier:.3f}" in said and "ece 0." in said and "pearson" in said


def test_a_sorted_file_is_a_curriculum(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 300)
    easy_first = score("arithmetic", run, tmp_path / "train.jsonl", "--limit", "8", "--sort")
    assert sorted(easy_first, key=lambda s: -s["value"]) == easy_first
    assert easy_first != score("arithmetic", run, tmp_path / "plain.jsonl", "--limit", "8")
    data = {"data.train": {"path": str(tmp_path / "train.jsonl"), "streaming": True}, "data.problems_per_epoch": 4}
    file = recipe(tmp_path, {**data, "data.prompt": {"suffix": ""}, "completions": {"every_n_iterations": 1}})
    assert main(["run", str(file), "--max_epochs", "1"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert any(s["problem"].replace(" ", "") in shown for s in easy_first[:4])


def test_the_critic_of_a_run_is_where_another_may_start(run: Path, tmp_path: Path) -> None:
    scored = score("arithmetic", run, tmp_path / "scores.jsonl", "--limit", "8")
    changes = {
        "model.critic": {"path": str(run / "hf" / "critic")},
        "data.train": {"path": "arithmetic", "limit": 8},
        "data.prompt": {"template": "so {problem}"},
    }
    assert main(["run", str(recipe(tmp_path, changes)), "--max_epochs", "1"]) == 0
    [row] = csv_rows(tmp_path / "runs" / "tiny" / "version_0" / "metrics.csv")
    assert float(row["critic/value_mean"]) == pytest.approx(sum(s["value"] for s in scored) / 8, abs=1e-6)
    assert abs(float(row["critic/value_mean"]) - 0.5) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["arithmetic", "--critic", "hf/critic"], "score: arithmetic has no end; give --limit N"),
        (["arithmetic", "--critic", "hf/policy", "--limit", "2"], "no trained value head for prompts; give RUN/hf/"),
        (["arithmetic", "--critic", "hf/nothing/here", "--limit", "2"], "no such model folder"),
        (["nowhere.jsonl", "--critic", "hf/critic"], "No data file nowhere.jsonl"),
        (["arithmetic", "--critic", "hf/critic", "--limit", "2", "--outcomes", "none"], "none: no such file"),
        (["arithmetic", "--critic", "hf/critic", "--limit", "2", "--recipe", "metrics.csv"], "not a recipe with"),
        (["arithmetic", "--critic", "hf/critic", "--limit", "2", "--tokens", "0"], "--tokens is 0; it must be at"),
        (["arithmetic", "--critic", "hf/critic", "--limit", "2", "--outcomes", "."], "is to a prompt that is scored"),
        (["arithmetic", "--limit", "2"], "score: the following arguments are required: --critic"),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(run)
    refused(capsys, tmp_path, ["score", *arguments, "--out", str(tmp_path / "scores.jsonl")], said)
