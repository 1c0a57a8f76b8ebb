"""Kills a run with SIGKILL repeatedly, resumes it each time, and compares it with an uninterrupted run.

    python benchmarks/kill_and_resume.py                  # 20 kills of 12 iterations, one process
    python benchmarks/kill_and_resume.py --devices 2      # the same under ddp, killing one of two ranks at a time
    python benchmarks/kill_and_resume.py --devices 2 --strategy fsdp  # checkpoints in distributed form
    … --strategy fsdp --phases writing                    # every kill while a checkpoint is written in the background

The kills are spread over sampling, verifying, updating, evaluating and saving, at seeded random moments. Weights,
optimizer states and the rows of `metrics.csv` (all but times and rates) must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from sppo_lit.distributed import checkpoints

ROOT = Path(__file__).resolve().parents[1]
DELAYS = {"sampling": 0.1, "verifying": 0.001, "updating": 0.1, "evaluating": 0.03, "saving": 0.01, "writing": 0.1}
PHASES = ("sampling", "verifying", "updating", "evaluating", "saving")
"""Phases in which a run is killed; `DELAYS` has the maximum seconds after their start."""

START, END = 300.0, 60.0
"""Timeouts in seconds: until a run reaches its phase, and until all processes of a killed run are gone."""

FLAGS = (
    "--accelerator=cpu",
    "--data.problems_per_epoch=32",
    "--data.val=[{path: arithmetic, limit: 16}]",
    "--trainer.check_val_every_n_epoch=2",
    "--model.batch.minibatch_size=8",
    "--model.memory.micro_batch_tokens=512",
    "--model.sampling.max_new_tokens=48",
    "--model.verifier.workers=1",
)


class PhaseFile(pl.Callback):
    """Writes "pid iteration phase" of this rank to `<folder>/rank<r>` whenever it changes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def _note(self, trainer: pl.Trainer, module: Any, phase: str) -> None:
        line = f"{os.getpid()} {module.iteration} {phase}"
        file = os.open(self.folder / f"rank{trainer.global_rank}", os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, line.ljust(64).encode(), 0)
        os.close(file)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Record that the background has begun to write a checkpoint, and slow it down to be hit."""
        if "SLOW_WRITE" not in os.environ:
            return
        write = checkpoints.dcp.save

        def noted(*arguments: Any, **options: Any) -> Any:
            file = self.folder / f"rank{trainer.global_rank}.writing"
            file.write_text(f"{os.getpid()} {pl_module.iteration} writing")
            result = write(*arguments, **options)
            time.sleep(0.2)  # complete, but not in its place
            file.unlink()
            return result

        checkpoints.dcp.save = noted

    def on_phase(self, trainer: pl.Trainer, pl_module: Any, phase: str, *facts: Any) -> None:
        """Record the phase."""
        if not trainer.sanity_checking:
            self._note(trainer, pl_module, phase)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Record that a checkpoint is about to be written."""
        self._note(trainer, pl_module, "saving")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Record that it has been written."""
        self._note(trainer, pl_module, "between")


def start(folder: Path, options: argparse.Namespace, resume: bool) -> subprocess.Popen[str]:
    """Start the command line in its own process group."""
    flags = [*FLAGS, f"--max_epochs={options.iterations}", f"--trainer.default_root_dir={folder}"]
    if options.devices > 1:
        flags += [f"--strategy={options.strategy}", f"--devices={options.devices}"]
    if resume:
        flags += ["--ckpt_path=last"]
    flags += ["--trainer.callbacks+=kill_and_resume.PhaseFile", f"--trainer.callbacks.folder={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "sppo_lit.cli", "run", "fit", "recipes/quickstart.yaml", *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            **({"SLOW_WRITE": "1"} if "writing" in options.phases else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def position(folder: Path, rank: int) -> tuple[int, int, str]:
    """(pid, iterations completed, phase) of a rank; (0, -1, "") before it has written them."""
    with suppress(OSError, ValueError):
        pid, iteration, phase = (folder / f"rank{rank}.writing").read_text().split()
        return int(pid), int(iteration), phase
    try:
        pid, iteration, phase = (folder / f"rank{rank}").read_text().split()
        return int(pid), int(iteration), phase
    except (OSError, ValueError):
        return 0, -1, ""


def wait_and_kill(process: subprocess.Popen[str], folder: Path, rank: int, at: int, phase: str, delay: float) -> str:
    """Kill a rank `delay` seconds after it reached a phase of an iteration; returns where it was, or how it ended."""
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        pid, iteration, now = position(folder, rank)
        if (iteration >= at and now == phase) or iteration > at + 2:
            time.sleep(delay)
            _, iteration, now = position(folder, rank)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return f"{now} after iteration {iteration}"
        time.sleep(0.001)
    return "over before it got there" if process.poll() is not None else "too slow"


def alive(group: int) -> bool:
    """Whether a process group has any process left that is not a zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)


def end(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Wait until all processes of a run are gone; returns the seconds it took, and the output.

    Raises:
        RuntimeError: a process is left after a minute.
    """
    started = time.monotonic()
    try:
        output, _ = process.communicate(timeout=END)
        while alive(process.pid):
            if time.monotonic() - started > END:
                raise RuntimeError("processes are left over a minute after one of them was killed")
            time.sleep(0.1)
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return time.monotonic() - started, output


def newest(folder: Path) -> Path | None:
    """The latest run folder with a checkpoint."""
    checkpoints = sorted(folder.glob("quickstart/version_*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    return checkpoints[-1].parent.parent if checkpoints else None


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and lists, by its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from tensors(inner, f"{name}/{i}")
    else:
        yield name, value


def rows(run: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` without times and rates."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        clocks = ("time/", "memory/", "clock/seconds")
        return [
            {k: v for k, v in row.items() if not k.startswith(clocks) and not k.endswith("per_second")}
            for row in csv.DictReader(file)
        ]


def loaded(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint of either form."""
    if checkpoint.is_dir():
        return checkpoints.whole_checkpoint(checkpoint)
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return content


def differences(a: Path, b: Path) -> list[str]:
    """Differences between two finished runs; also prints what was compared."""
    states = [loaded(run / "checkpoints" / "last.ckpt") for run in (a, b)]
    wrong = []
    for part in ("state_dict", "optimizer_states"):
        one, two = (dict(tensors(state[part])) for state in states)
        wrong += [f"{part}: other names"] if one.keys() != two.keys() else []
        for name in one.keys() & two.keys():
            same = torch.equal(one[name], two[name]) if torch.is_tensor(one[name]) else one[name] == two[name]
            wrong += [] if same else [f"{part}{name}"]
        print(f"{part}: {len(one)} values compared")
    one_rows, two_rows = rows(a), rows(b)
    print(f"metrics.csv: {len(one_rows)} and {len(two_rows)} rows of {len(one_rows[0])} columns compared")
    wrong += [f"metrics.csv: {len(one_rows)} and {len(two_rows)} rows"] if len(one_rows) != len(two_rows) else []
    for i, (x, y) in enumerate(zip(one_rows, two_rows, strict=False)):
        wrong += [f"metrics.csv row {i} {k}: {x.get(k)} and {y.get(k)}" for k in x | y if x.get(k) != y.get(k)]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run the test; returns 0 if the killed run equals the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default 20)")
    parser.add_argument("--iterations", type=int, default=12, help="iterations of the run (default 12)")
    parser.add_argument("--devices", type=int, default=1, help="CPU processes; ddp if more than one (default 1)")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of several processes")
    parser.add_argument("--phases", nargs="+", choices=tuple(DELAYS), default=PHASES, help="in which runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    moments = sorted(rng.randrange(options.iterations) for _ in range(options.kills))
    phases = [options.phases[i % len(options.phases)] for i in range(options.kills)]
    rng.shuffle(phases)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        whole.mkdir()
        killed.mkdir()
        process = start(whole, options, resume=False)
        output, _ = process.communicate()
        if process.returncode:
            print(output)
            return 1
        hits: Counter[str] = Counter()
        for i, (at, phase) in enumerate(zip(moments, phases, strict=True)):
            for file in killed.glob("rank*"):
                file.unlink()
            rank = rng.randrange(options.devices)
            process = start(killed, options, resume=newest(killed) is not None)
            outcome = wait_and_kill(process, killed, rank, at, phase, rng.uniform(0.0, DELAYS[phase]))
            seconds, output = end(process)
            hits[outcome.partition(" ")[0]] += 1
            print(f"kill {i + 1}: rank {rank}, {outcome}; all gone {seconds:.1f} s later", flush=True)
            if "Traceback" in output:
                print(output)
        process = start(killed, options, resume=newest(killed) is not None)
        output, _ = process.communicate()
        print(f"killed while: {dict(hits)}; the last resume ended with exit code {process.returncode}")
        first, second = newest(whole), newest(killed)
        complete = process.returncode == 0 or "raise --max_epochs" in output  # killed after its last checkpoint
        if not complete or first is None or second is None:
            print(output)
            return 1
        wrong = differences(first, second)
        print("\n".join(wrong[:20]) or "equal bit for bit")
        return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
