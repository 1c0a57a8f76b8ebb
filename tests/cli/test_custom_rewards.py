"""Custom rewards through the command line: failures are counted, and a reward that never works ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_helpers import recipe, refused
from run_files import csv_rows

from sppo_lit.cli.main import main

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]

REWARDS = """
def constant(response, gold):
    return 0.25

def often(response, gold):
    return None if len(response) % 2 else 0.5

def raises(response, gold):
    raise ValueError("no such word")

def text(response, gold):
    return "good"

def huge(response, gold):
    return 1e308
"""


@pytest.fixture
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Outside `tmp_path`: Python caches the file's bytecode beside it."""
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(REWARDS)
    return str(file)


def test_means_and_failures_are_logged_by_name(tmp_path: Path, rewards: str) -> None:
    custom = {f"{rewards}:constant": 0.1, f"{rewards}:often": 2.0}
    file = recipe(tmp_path, {"trainer.max_epochs": 2, "model.reward": {"correctness": 0.0, "custom": custom}})
    assert main(["run", str(file)]) == 0
    lines = csv_rows(tmp_path / "runs" / "tiny" / "version_0" / "metrics.csv")
    assert sum(float(line["rollout/reward_failures/often"]) for line in lines) > 0
    for line in lines:
        assert float(line["rollout/reward/constant"]) == 0.25 and float(line["rollout/reward_failures/constant"]) == 0
        failures = float(line["rollout/reward_failures/often"])
        assert float(line["rollout/reward/often"]) == pytest.approx(0.5 * (8 - failures) / 8)
        paid = 0.1 * 0.25 + 2.0 * float(line["rollout/reward/often"])
        assert float(line["rollout/reward"]) == pytest.approx(paid)


@pytest.mark.parametrize("name", ["raises", "text", "huge"])
def test_a_reward_that_fails_on_every_response_ends_the_run(
    name: str, tmp_path: Path, rewards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, {"model.reward.custom": {f"{rewards}:{name}": 1.0}})
    refused(capsys, tmp_path, ["run", file], f"mine.py:{name} failed on all 8 responses of iteration 1", "correct the")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e300])
def test_weights_are_numbers(weight: float, tmp_path: Path, rewards: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"model.reward.custom": {f"{rewards}:constant": weight}}
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], "mine.py:constant", "it must be a number from -1e+09")
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"model.reward.correctness": weight})], "correctness")
