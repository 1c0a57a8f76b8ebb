"""What befalls one of two ranks: a signal, too little memory, a sudden death. Real processes, a hard time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from launch import ROOT, SETTINGS, difference, equal, launch

TWO = ("--strategy=ddp", "--devices=2")
LIMIT = 150


class End(NamedTuple):
    """How a run ended: exit code, what it printed, seconds from the trouble to the end of its last process."""

    code: int
    output: str
    seconds: float


def trouble(folder: Path, kind: str, *flags: str, **arguments: object) -> End:
    """A run of two ranks with a callback of `troubles`, until no process of it is left."""
    folder.mkdir(exist_ok=True)
    options = [f"--trainer.callbacks+=troubles.{kind}"]
    options += [f"--trainer.callbacks.{name}={value}" for name, value in arguments.items()]
    log = (folder / "log.txt").open("w+")
    command = [sys.executable, "-m", "sppo_lit.cli", "run", "fit", "recipes/quickstart.yaml"]
    process = subprocess.Popen(
        [*command, *SETTINGS, *TWO, *options, f"--trainer.default_root_dir={folder}", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(LIMIT)
        first = time.monotonic()
        while left(process.pid):
            assert time.monotonic() < first + 60, "processes are left a minute after the first one ended"
            time.sleep(0.1)
        seconds = time.monotonic() - first
    finally:
        if left(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    log.seek(0)
    return End(code, log.read(), seconds)


def left(group: int) -> bool:
    """Whether any process of a group is still at work."""
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in found)


def last(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.rglob("last.ckpt")
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_the_other_with_it(tmp_path: Path, rank: int) -> None:
    end = trouble(tmp_path, "KillAt", phase="sampling", iteration=1, rank=rank)
    assert end.code == (-signal.SIGKILL if rank == 0 else 1), end.output
    assert end.seconds < 20
    # not the first line with "Error": torch may log a stack of its store before
    errors = re.findall(r"^(?:sppo: |\w+Error\b).*", end.output, re.MULTILINE)
    named = "rank 1: the process that launched it" if rank == 0 else "rank 1 (process"
    assert errors and named in errors[0], end.output
    assert rank == 0 or "was killed by SIGKILL" in errors[0]
    assert int(last(tmp_path)["iterations_done"]) == 1


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_rank_may_sample_longer_than_a_collective_may_take(tmp_path: Path, strategy: str) -> None:
    slow = ("--trainer.callbacks+=troubles.SlowSampling", "--trainer.callbacks.seconds=6")
    slow += ("--trainer.callbacks.timeout=3", "--trainer.callbacks.rank=1", "--max_epochs=1")
    evaluated = ("--trainer.check_val_every_n_epoch=1", "--model.evaluation.values=true")
    run = launch(tmp_path, f"--strategy={strategy}", "--devices=2", *slow, *evaluated)
    assert run.metrics["step"] == 1 and "val/accuracy" in run.metrics
    assert run.metrics["time/wait"] > 2.5, "the mean over both ranks of what the fast one waited"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["sampling", "updating"])
def test_a_signal_to_one_rank_ends_all_and_the_run_resumes(tmp_path: Path, phase: str) -> None:
    whole = launch(tmp_path / "whole", *TWO)
    folder = tmp_path / "stopped"
    flags = ("--checkpoint.every_n_iterations=2",)
    end = trouble(folder, "SignalAt", *flags, signum=int(signal.SIGTERM), phase=phase, iteration=1, rank=1, part=1)
    assert end.code == 128 + signal.SIGTERM, end.output
    done = 1 if phase == "sampling" else 2
    assert f"interrupted after iteration {done}; resume: lightning run fit" in end.output
    assert "Traceback" not in end.output and int(last(folder)["iterations_done"]) == done
    resumed = launch(folder, *TWO, *flags, "--ckpt_path=last")
    assert all(equal(a, b) for a, b in zip(whole.ranks, resumed.ranks, strict=True))


@pytest.mark.slow
def test_memory_that_runs_out_on_one_rank_makes_smaller_pieces_on_all(tmp_path: Path) -> None:
    memory = ("--trainer.callbacks+=troubles.SmallMemory", "--trainer.callbacks.sequences=2")
    one = launch(tmp_path / "one")
    two = launch(tmp_path / "two", *TWO, *memory, "--trainer.callbacks.rank=1", "--model.memory.micro_batch_tokens=400")
    assert "out of memory in an update: continuing with model.memory.micro_batch_tokens 200" in two.output
    assert two.output.count("micro_batch_tokens 200") == 1
    assert equal(*two.ranks) and difference(one.ranks[0], two.ranks[0]) <= 1e-5
