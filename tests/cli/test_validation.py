"""Validation through the command line: the critic's values, and models that were never trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import recipe, refused

from sppo_lit.cli.main import main

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
VAL = {"data.val": [{"path": "arithmetic", "limit": 6}], "trainer.check_val_every_n_epoch": 1}


def completions(folder: Path, name: str = "arithmetic-iteration-*.jsonl") -> list[dict[str, Any]]:
    """Lines of the only file of that name below a folder."""
    (file,) = folder.rglob(f"evaluations/{name}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def values_of(tmp_path: Path, algorithm: str) -> list[dict[str, Any]]:
    file = recipe(tmp_path, {**VAL, "trainer.max_epochs": 1, "model.algorithm": algorithm})
    assert main(["run", str(file)]) == 0
    flags = ["--ckpt_path", "last", "--model.evaluation.values", "true", "--model.evaluation.samples", "3"]
    assert main(["run", "validate", str(file), *flags]) == 0
    return completions(tmp_path / "runs" / "tiny-validate")


def test_a_scalar_critic_predicts_from_the_prompt(tmp_path: Path) -> None:
    lines = values_of(tmp_path, "sppo")
    assert len(lines) == 6 * 4
    by_problem: dict[str, set[float]] = {}
    for line in lines:
        assert 0 < line["value"] < 1 and "values" not in line
        by_problem.setdefault(line["problem"], set()).add(round(line["value"], 5))
    assert all(len(values) == 1 for values in by_problem.values()), "the response changes nothing"
    assert len(set.union(*by_problem.values())) > 1, "but the prompt does"


def test_a_token_critic_predicts_before_every_token(tmp_path: Path) -> None:
    lines = values_of(tmp_path, "ppo_bce")
    assert {len(line["values"]) == line["tokens"] for line in lines} == {True}
    assert all(line["value"] == pytest.approx(line["values"][0], abs=1e-5) for line in lines)
    assert any(len(set(line["values"])) > 1 for line in lines)
    first = {line["problem"]: line["values"][0] for line in lines}
    assert all(line["values"][0] == pytest.approx(first[line["problem"]], abs=2e-5) for line in lines)


def test_values_need_a_critic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"model.algorithm": "rloo", "model.evaluation.values": True})
    refused(capsys, tmp_path, ["run", file], "model.evaluation.values", "RLOO has no critic")


def test_a_model_never_trained_here_needs_no_critic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any) -> Any:
        raise AssertionError("a critic was loaded")

    monkeypatch.setattr("sppo_lit.training.networks.load_critic", load)
    assert main(["run", "validate", str(recipe(tmp_path, VAL))]) == 0
    assert len(completions(tmp_path)) == 6
