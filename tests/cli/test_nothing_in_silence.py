"""What a run used to do without a word: lose its folder, its loggers or its name, end early, evaluate nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import recipe, refused
from run_files import csv_rows

from sppo_lit.cli.main import main
from sppo_lit.training.diagnostics import no_reward

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
EVALUATED = {"data.val": [{"path": "arithmetic", "limit": 4}], "trainer.check_val_every_n_epoch": 1}


@pytest.mark.parametrize("name", ["a/b/c", "..", ".", "", "/tmp/x"])
def test_a_run_name_is_one_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path), f"--run_name={name}"], f"--run_name {name!r}", "without '/'")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"max_steps": 10}, ("trainer.max_steps", "policy and critic together", "set trainer.max_epochs")),
        ({"max_epochs": -5}, ("trainer.max_epochs is -5", "at least 1")),
        ({"enable_checkpointing": False}, ("enable_checkpointing", "checkpoint.every_n_iterations")),
        ({"barebones": True}, ("trainer.barebones", "loggers and callbacks")),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_trainer_settings_that_have_no_meaning_here(
    changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, {f"trainer.{key}": value for key, value in changes.items()})
    refused(capsys, tmp_path, ["run", file], *parts)


def test_a_learning_rate_that_destroys_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"model.critic_optimizer.lr": 1e30})
    refused(capsys, tmp_path, ["run", file], "critic_optimizer: lr is 1e+30", "0 to 1")


def test_best_where_nothing_was_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"trainer.max_epochs": 1})
    assert main(["run", str(file)]) == 0
    for stage in ("fit", "validate"):
        flags = ["--ckpt_path", "best", "--data.val", "[{path: arithmetic, limit: 4}]"]
        refused(capsys, tmp_path, ["run", stage, file, *flags], "none was evaluated", "take --ckpt_path last")


def test_a_monitor_that_is_not_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe(tmp_path, EVALUATED))
    assert main(["run", file, "--checkpoint.monitor", "val/acuracy"]) == 0
    assert capsys.readouterr().out.count("no best.ckpt is kept: checkpoint.monitor val/acuracy is not among") == 1
    assert main(["run", file]) == 0
    assert "no best.ckpt" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ the end


def ended(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]) -> str:
    assert main(["run", str(recipe(tmp_path, {"trainer.max_epochs": 50, **changes}))]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "ended by" in line]
    return lines[0] if lines else ""


def test_the_summary_says_what_ended_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ended(tmp_path, capsys, {"clock.max_tokens": 100})
    assert "clock.max_tokens 100, before iteration 50 (max_epochs)" in said
    assert "trainer.max_time, before iteration 50" in ended(tmp_path, capsys, {"trainer.max_time": "00:00:00:01"})
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/accuracy", "patience": 1, "mode": "max"},
    }
    said = ended(tmp_path, capsys, {**EVALUATED, "trainer.callbacks": [stopping]})
    assert "EarlyStopping on val/accuracy" in said
    assert ended(tmp_path, capsys, {"trainer.max_epochs": 1}) == ""
    # The budget and the last iteration at once: the run has done what was asked for.
    assert ended(tmp_path, capsys, {"trainer.max_epochs": 1, "clock.max_tokens": 1}) == ""


# ------------------------------------------------------------------------------------------------------------ loggers


def test_without_a_logger_each_run_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = str(recipe(tmp_path, {**EVALUATED, "trainer.logger": False, "trainer.max_epochs": 1}))
    assert main(["run", file]) == 0 and main(["run", file]) == 0
    runs = tmp_path / "runs" / "tiny"
    assert sorted(p.name for p in runs.iterdir()) == ["version_0", "version_1"]
    for run in runs.iterdir():
        assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()
        assert not (run / "metrics.csv").exists() and not list(run.glob("events*")), "nothing is logged"
    assert not any(elsewhere.iterdir())
    assert main(["run", "fit", file, "--ckpt_path", "last", "--max_epochs", "2"]) == 0
    assert len(list(runs.iterdir())) == 2


@pytest.mark.parametrize("as_list", [False, True])
def test_a_logger_of_the_recipe_stands_beside_the_default_ones(as_list: bool, tmp_path: Path) -> None:
    own: Any = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(tmp_path / "mine"), "name": "own"},
    }
    file = str(recipe(tmp_path, {"trainer.max_epochs": 1, "trainer.logger": [own] if as_list else own}))
    assert main(["run", file]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert len(csv_rows(run / "metrics.csv")) == len(csv_rows(tmp_path / "mine" / "own" / "version_0" / "metrics.csv"))
    assert list(run.glob("events*"))
    assert main(["run", "fit", file, "--ckpt_path", "last", "--max_epochs", "2"]) == 0
    assert [row["step"] for row in csv_rows(run / "metrics.csv")] == ["1", "2"]


def test_no_reward_at_all_is_said_once_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe(tmp_path, {"trainer.max_epochs": 4, "model.sampling.max_new_tokens": 1}))
    assert main(["run", file]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "no response of the first 3" in line]
    assert "100% cut off before an answer" in line and "raise model.sampling.max_new_tokens" in line


def test_a_verifier_with_reasons_of_its_own_is_no_error() -> None:
    assert no_reward({"wrong": 0.0}) == "nothing can be learned from it; see the completions"


def test_a_trial_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    file = str(recipe(tmp_path))
    assert main(["run", file, "--trainer.fast_dev_run", "true"]) == 0
    assert not (tmp_path / "runs" / "tiny").exists(), sorted(set(tmp_path.rglob("*")) - before)


# ----------------------------------------------------------------------------------------------------------- validate


def test_validate_says_what_it_takes_and_where_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe(tmp_path, {**EVALUATED, "trainer.max_epochs": 2}))
    assert main(["run", "validate", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("no checkpoint: the weights of ") and "arithmetic/base" in line for line in lines)
    assert lines[-1] == f"completions: {tmp_path / 'runs' / 'tiny-validate' / 'version_0' / 'evaluations'}"
    assert main(["run", file]) == 0
    assert not [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("completions:", "checkpoint"))
    ]
    assert main(["run", "validate", file, "--ckpt_path", "last"]) == 0
    last = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert f"checkpoint: {last} (iteration 2)" in capsys.readouterr().out.splitlines()


def test_validate_does_not_miss_the_timer_of_a_training(tmp_path: Path) -> None:
    file = str(recipe(tmp_path, EVALUATED))
    assert main(["run", file, "--trainer.max_time", "00:01:00:00", "--max_epochs", "1"]) == 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main(["run", "validate", file, "--ckpt_path", "last"]) == 0
    assert not [w for w in seen if "used to create the checkpoint" in str(w.message)]


def test_validate_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        capsys, tmp_path, ["run", "validate", recipe(tmp_path)], "data.val is empty", "--data.val '[{path: gsm8k}]'"
    )
    file = recipe(tmp_path, EVALUATED)
    refused(capsys, tmp_path, ["run", "validate", file, "--data.val", "[]"], "data.val is empty")


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("bfloat16", "large", "flags", "precision"),
    [
        (True, 0, [], "bf16-mixed"),
        (True, 0, ["--precision", "32-true"], "32-true"),
        (True, 10**9, [], "32-true"),
        (False, 0, [], "32-true"),
    ],
)
def test_a_large_policy_is_trained_in_bfloat16_where_the_cpu_is_faster_with_it(
    bfloat16: bool,
    large: int,
    flags: list[str],
    precision: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sppo_lit.cli.precision.multiplies_bfloat16", lambda: bfloat16)
    monkeypatch.setattr("sppo_lit.cli.precision.LARGE", large)
    assert main(["run", str(recipe(tmp_path, {"trainer.max_epochs": 1})), *flags]) == 0
    assert ("precision: bf16-mixed" in capsys.readouterr().out) is (precision == "bf16-mixed")
    saved = torch.load(tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["trained_with"]["precision"] == precision
