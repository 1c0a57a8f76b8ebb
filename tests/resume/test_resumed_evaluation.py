"""An interrupted evaluation, run again, samples only what is missing and gives the numbers of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ROOT, recipe

from sppo_lit.callbacks.journal import SETTINGS, Journal
from sppo_lit.cli.main import main
from sppo_lit.training.sampler import Sampler
from sppo_lit.types import Problem, Scored, Verdict

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
SETS = [{"path": "arithmetic", "limit": 10}, {"path": "arithmetic", "split": "other", "limit": 7, "name": "other"}]
EVALUATION = {"greedy": True, "samples": 2, "chunk": 6, "max_new_tokens": 12}  # two problems, six responses a chunk
CHANGES = {"data.val": SETS, "model.evaluation": EVALUATION}
ALL = 3 * (10 + 7)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """(problem, sample) of every response sampled; `stop_after` of them, the program is interrupted."""
    found = Sampled()
    sample = Sampler.draw

    def counting(self: Any, encoded: Any, sampling: Any, stage: str, samples: Any, *more: Any) -> Any:
        if len(found) >= found.stop_after:
            raise found.error
        found.extend((problem.key, s) for (problem, _), s in zip(encoded, samples, strict=True))
        return sample(self, encoded, sampling, stage, samples, *more)

    monkeypatch.setattr(Sampler, "draw", counting)
    yield found


class Sampled(list):  # type: ignore[type-arg]
    stop_after = 10**9
    error: BaseException = KeyboardInterrupt()


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Completions by file name, and that nothing else is left in the folder."""
    files = {p.name: p for p in (folder / "evaluations").iterdir()}
    assert all(name.endswith(".jsonl") for name in files), files
    return {name: [json.loads(line) for line in p.read_text().splitlines()] for name, p in sorted(files.items())}


def table(output: str) -> str:
    return output[output.index("Evaluation") :]


def evaluate(tmp_path: Path, *flags: str) -> list[str]:
    return ["run", "validate", str(recipe(tmp_path, CHANGES)), *flags]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of luck")], ids=["ctrl-c", "error"])
def test_interrupted_and_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sampled: Sampled, error: BaseException
) -> None:
    assert main(evaluate(tmp_path, "--trainer.default_root_dir", str(tmp_path / "whole"))) == 0
    whole = table(capsys.readouterr().out)
    assert len(sampled) == len(set(sampled)) == ALL
    expected = results(tmp_path / "whole" / "tiny-validate" / "version_0")

    sampled.clear()
    sampled.stop_after, sampled.error = 35, error  # in the second set
    if isinstance(error, KeyboardInterrupt):
        assert main(evaluate(tmp_path)) == 130
        assert "interrupted; the same command resumes from the responses on disk" in capsys.readouterr().err
    else:
        with pytest.raises(RuntimeError, match="out of luck"):
            main(evaluate(tmp_path))
    run = tmp_path / "runs" / "tiny-validate" / "version_0"
    parts = sorted(p.name for p in (run / "evaluations").glob("*.part"))
    assert parts == ["arithmetic-iteration-0.rank0.part", "other-iteration-0.rank0.part"]
    on_disk = sum(p.read_bytes().count(b"\n") for p in (run / "evaluations").glob("*.part"))
    first = list(sampled[:on_disk])
    assert 30 <= on_disk <= len(sampled) < ALL
    with (run / "evaluations" / parts[1]).open("ab") as file:
        file.write(b'{"problem": "arithmetic/other/4", "samp')  # killed while writing
    sampled.clear()
    sampled.stop_after = 10**9
    assert main(evaluate(tmp_path, "--model.rollout.max_concurrent", "3")) == 0
    shown = capsys.readouterr().out
    assert f"resuming in {run}: {on_disk} responses are on disk" in shown
    assert not set(first) & set(sampled) and len(sampled) == ALL - on_disk
    assert table(shown) == whole
    assert results(run) == expected
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]
    assert len((run / "metrics.csv").read_text().splitlines()) == 2

    sampled.clear()
    assert main(evaluate(tmp_path)) == 0  # nothing to go on from: anew
    assert len(sampled) == ALL and (run.parent / "version_1").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        ["--model.evaluation.temperature", "0.7"],
        ["--seed_everything", "4"],
        ["--evaluation.resume", "false"],
        ["--data.val", "[{path: arithmetic, limit: 10}]"],
        "weights",
    ],
    ids=lambda change: change if isinstance(change, str) else change[0],
)
def test_other_settings_start_anew(tmp_path: Path, sampled: Sampled, change: Any) -> None:
    trained = recipe(tmp_path, {"trainer.max_epochs": 1}, "trained.yaml")
    assert main(["run", str(trained), "--completions.every_n_iterations", "0"]) == 0
    checkpoint = tmp_path / "runs" / "trained" / "version_0" / "checkpoints" / "last.ckpt"
    arguments = evaluate(tmp_path, "--ckpt_path", str(checkpoint))
    sampled.clear()
    sampled.stop_after = 12
    assert main(arguments) == 130
    assert len(sampled) >= 12
    sampled.clear()
    sampled.stop_after = 10**9
    if change == "weights":
        os.utime(checkpoint)
    assert main([*arguments, *([] if change == "weights" else change)]) == 0
    assert len(sampled) == (30 if change[0] == "--data.val" else ALL)
    assert {p.name for p in (tmp_path / "runs" / "tiny-validate").iterdir()} == {"version_0", "version_1"}
    if change == ["--seed_everything", "4"]:
        sampled.clear()
        assert main(arguments) == 0, "the first one can still be finished"
        assert 0 < len(sampled) < ALL and results(tmp_path / "runs" / "tiny-validate" / "version_0")


def test_journal_drops_what_it_cannot_trust(tmp_path: Path) -> None:
    problem, text = Problem("a/1", "1 + 1", "2"), "line\u2028separators \x85 and \ud800"
    written = [Scored(problem, text, 3, Verdict(1.0, "correct", "2"), s, True, 0.5, None, [0.5, 0.25]) for s in (0, 1)]
    journal = Journal(tmp_path, ["a"], 0)
    journal.begin({"seed": 1})
    journal.append(0, written)
    part = tmp_path / "a.rank0.part"
    with part.open("ab") as file:
        file.write(b'\x00\x00\n{"problem": "a/1", "sample": 2}')
    again = Journal(tmp_path, ["a"], 1)
    again.begin({"seed": 1})
    assert again.read() == 2
    found = again.find(0, problem, 1)
    assert found is not None and found.values == [0.5, 0.25] and found.verdict.reason == "correct"
    assert again.find(0, Problem("a/1", "1 + 2", "3"), 1) is None, "another problem under the same key"
    again.append(0, written)
    assert not (tmp_path / "a.rank1.part").exists(), "nothing twice"
    anew = Journal(tmp_path, ["a"], 0)
    anew.begin({"seed": 2})
    assert anew.read() == 0 and json.loads((tmp_path / SETTINGS).read_text()) == {"seed": 2}
    anew.end()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ real processes


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sppo_lit.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def killed(arguments: list[str], run: Path, ranks: int) -> int:
    """Kill -9 all processes once every rank has written some responses; returns how many are on disk."""
    process = start(arguments)
    deadline = time.monotonic() + 120

    def lines() -> list[int]:
        return [p.read_bytes().count(b"\n") for p in run.glob("evaluations/*.part")]

    try:
        while (len(lines()) < ranks or sum(lines()) < 12) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return sum(lines())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: int) -> None:
    many = ["--data.val", "[{path: arithmetic, limit: 80}]", "--model.evaluation.chunk", "6"]
    whole = tmp_path / "whole"
    assert main(evaluate(tmp_path, *many, "--trainer.default_root_dir", str(whole))) == 0
    expected = table(capsys.readouterr().out)
    run = tmp_path / "runs" / "tiny-validate" / "version_0"
    devices = ["--strategy", "ddp", "--devices", "2"] if ranks == 2 else []
    arguments = evaluate(tmp_path, *many, *devices)
    found = killed(arguments, run, ranks)
    assert 12 <= found < 240
    again = start(arguments)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert f"resuming in {run}: {found} responses are on disk" in output
    assert table(output) == expected
    assert results(run) == results(whole / "tiny-validate" / "version_0")
