"""Loggers by name, beside the CSV and TensorBoard files of every run."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import ROOT, recipe, refused

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login of the machine's user, and no server but those of the test."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_wandb_and_mlflow_stand_beside_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # A process of its own: wandb writes the rest of its file when it ends.
    command = [sys.executable, "-m", "sppo_lit.cli", "run", recipe(tmp_path), "--logger", "wandb,mlflow,csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert len((run / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert list(run.glob("events.out.tfevents.*"))
    [offline] = run.glob("wandb/offline-run-*/run-*.wandb")
    assert b"policy/loss" in offline.read_bytes()
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        rows = database.execute("SELECT step, value FROM metrics WHERE key = 'policy/loss' ORDER BY step").fetchall()
        names = database.execute("SELECT name FROM runs").fetchall()
    assert [step for step, _ in rows] == [1, 2] and names == [("tiny-version_0",)]


def test_without_a_login_wandb_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--logger", "wandb"], "no login", "WANDB_MODE=offline")
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--wandb", "mine"], "no login", "wandb login")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--logger", f"csv,{name}"], f"pip install 'sppo-lit[{name}]'")


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--logger", "wandb2"], "--logger wandb2 is unknown", "mlflow")
