"""Two processes in one run folder: the second is refused while the first one lives, however the first one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ROOT, recipe, refused
from run_files import csv_rows
from troubles import SignalAt, callback

from sppo_lit.cli.main import main, run_settings
from sppo_lit.errors import InputError
from sppo_lit.utils.lock import FolderLock

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
VAL = [{"path": "arithmetic", "limit": 8}]


@contextmanager
def stopped_in_the_middle(*arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs these arguments and has stopped itself (SIGSTOP); killed at the end at the latest."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo_lit.cli", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=5)[0]
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def stopping(phase: str, iteration: int) -> list[dict[str, Any]]:
    return [callback(SignalAt, signum=int(signal.SIGSTOP), phase=phase, iteration=iteration)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_run_is_resumed_by_one_process_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = recipe(tmp_path, {"trainer.max_epochs": 5})
    assert main(["run", str(plain), "--max_epochs", "1"]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert not (run / ".lock").exists()
    stops = recipe(tmp_path, {"trainer.max_epochs": 5, "trainer.callbacks": stopping("sampling", 3)}, "stops.yaml")
    resume = ["run", "fit", plain, "--ckpt_path", "last"]
    with stopped_in_the_middle("run", "fit", stops, "--run_name", "tiny", "--ckpt_path", "last") as first:
        error = refused(capsys, tmp_path, resume, f"{run}: process {first.pid} on ", "is still writing", "wait for it")
        assert "Traceback" not in error
        assert run_settings([str(a) for a in resume[1:]]).ckpt_path, "looking at the settings needs no lock"
    assert (run / ".lock").exists(), "SIGKILL leaves the file, but not the lock"
    assert main([str(a) for a in resume]) == 0
    assert [row["step"] for row in csv_rows(run / "metrics.csv")] == ["1", "2", "3", "4", "5"]
    assert not (run / ".lock").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_an_evaluation_is_continued_by_one_process_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"data.val": VAL, "model.evaluation": {"chunk": 2, "max_new_tokens": 4}}
    plain = recipe(tmp_path, changes)
    stops = recipe(tmp_path, {**changes, "trainer.callbacks": stopping("evaluating", 0)}, "stops.yaml")
    with stopped_in_the_middle("run", "validate", stops, "--run_name", "tiny") as first:
        run = tmp_path / "runs" / "tiny-validate" / "version_0"
        assert list((run / "evaluations").iterdir()), "it has begun"
        refused(capsys, tmp_path, ["run", "validate", plain], f"{run}: process {first.pid} on ")
        assert main(["run", "validate", str(plain), "--evaluation.resume", "false"]) == 0, "an evaluation of its own"
    assert main(["run", "validate", str(plain)]) == 0
    assert sorted(p.name for p in run.parent.iterdir()) == ["version_0", "version_1"]


def test_runs_that_start_at_once_take_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the folder after this one has seen that it is free."""
    file = str(recipe(tmp_path, {"trainer.max_epochs": 1}))
    runs = tmp_path / "runs" / "tiny"
    mkdir = Path.mkdir

    def late(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "version_0" and not self.exists():
            mkdir(self)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    assert main(["run", file]) == 0
    assert [p.name for p in sorted(runs.iterdir()) if (p / "metrics.csv").exists()] == ["version_1"]


def test_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(InputError, match=f"process {os.getpid()} on "):
        FolderLock(tmp_path)
    first.release()
    assert not any(tmp_path.iterdir())
    (tmp_path / ".lock").write_text("process 1 on a machine that has crashed\n")
    FolderLock(tmp_path).release()

    def unsupported(*args: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    FolderLock(tmp_path).release()
    assert "this file system has no locks" in capsys.readouterr().out
