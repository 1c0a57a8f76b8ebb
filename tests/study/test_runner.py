"""A study's runs in processes of their own: failures, interruptions, what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import HELD_OUT, ROOT, refused
from run_files import csv_rows
from test_plan import study

from sppo_lit.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def this_checkout(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a study run this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def logged(run: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` without what depends on the machine."""
    machine = ("time/", "memory/", "clock/seconds", "rollout/tokens_per_second")
    rows = csv_rows(run / "version_0" / "metrics.csv")
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows]


def test_a_failed_cell_does_not_stop_the_others(tmp_path: Path, capsys: Any) -> None:
    cells = {"wrong": {"data.train.path": str(tmp_path / "gone.jsonl")}, "right": {}}
    file = study(tmp_path, cells=cells, seeds=[3], parallel=2, common=HELD_OUT)
    assert main(["study", str(file)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "wrong, seed 3: failed" in shown and "right, seed 3: done" in shown
    assert "gone.jsonl" in shown and "seed-3-wrong.log" in shown, "the last lines of the log that tells why"
    rows = logged(tmp_path / "out" / "seed-3" / "right")
    assert float(rows[-1]["clock/tokens"] or rows[-2]["clock/tokens"]) >= 300
    assert not list(tmp_path.glob("out/seed-3/wrong/version_*/checkpoints/*"))

    log = tmp_path / "out" / "logs" / "seed-3-right.log"
    before = log.stat().st_mtime_ns
    assert main(["study", str(file), "--only", "right"]) == 0
    assert log.stat().st_mtime_ns == before, "what is done is kept"
    assert "1 done · 1 of them before" in capsys.readouterr().out
    study(tmp_path, cells=cells, seeds=[3], budget={"tokens": 400})
    refused(capsys, tmp_path, ["study", file, "--only", "right"], "right, seed 3", "--clock.max_tokens=400")


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """With kill -9 in the middle of a run; the numbers are those of a study that was not interrupted."""
    file = study(tmp_path, cells={"sppo": {}}, seeds=[1], budget={"tokens": 2_500}, common=HELD_OUT)
    command = [sys.executable, "-m", "sppo_lit.cli", "study", str(file), "--out"]
    assert subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, capture_output=True).returncode == 0

    halves = tmp_path / "halves"
    process = subprocess.Popen([*command, str(halves)], cwd=ROOT, stdout=subprocess.DEVNULL)
    log, until = halves / "logs" / "seed-1-sppo.log", time.monotonic() + 120
    while "iteration 20 " not in (log.read_text() if log.exists() else "") and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run([*command, str(halves)], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    commands = [line for line in log.read_text().splitlines() if line.startswith("$ sppo")]
    assert ["--ckpt_path=last" in line for line in commands] == [False, True]
    assert logged(halves / "seed-1" / "sppo") == logged(tmp_path / "whole" / "seed-1" / "sppo")
    assert len(list((halves / "seed-1" / "sppo").iterdir())) == 1


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = study(tmp_path, cells={"sppo": {}}, seeds=[1], budget={"tokens": 10_000_000})
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo_lit.cli", "study", str(file)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log, until = tmp_path / "out" / "logs" / "seed-1-sppo.log", time.monotonic() + 120
    while "iteration 2 " not in (log.read_text() if log.exists() else "") and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.count("\n") == 1 and f"sppo study {file}" in error
    size = log.stat().st_size
    time.sleep(2)
    assert log.stat().st_size == size, "no run is left behind"
