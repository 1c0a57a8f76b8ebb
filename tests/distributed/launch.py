"""Runs of the real command line in processes of their own; a hard limit ends the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from run_files import csv_rows

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240
"""Seconds after which a run and all its processes are killed."""

# A larger epsilon: Adam would otherwise blow up the float error of gradients that are almost zero.
ADAM = "{lr: 0.001, eps: 0.001}"

TRAINER = (
    "--seed_everything=5",
    "--max_epochs=3",
    "--accelerator=cpu",
    "--data.problems_per_epoch=16",
    "--data.val=[{path: arithmetic, limit: 3}]",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.check_val_every_n_epoch=3",
)
SETTINGS = (
    *TRAINER,
    "--model.batch.minibatch_size=8",
    "--model.sampling.max_new_tokens=48",
    "--model.ppo.epochs=2",
    "--model.ppo.critic_warmup=1",
    "--model.memory.micro_batch_tokens=100",
    "--model.ppo.old_logprobs=recompute",
    "--model.verifier.workers=1",
    f"--model.policy_optimizer={ADAM}",
    f"--model.critic_optimizer={ADAM}",
)
"""Several minibatches per iteration, several micro-batches per minibatch, responses of many lengths."""

Weights = dict[str, torch.Tensor]


@dataclass
class Run:
    """What a run left behind.

    Attributes:
        ranks: whole weights at the end of training, of each rank.
        metrics: name to value, of the last row of `metrics.csv` that has it.
        folder: the run folder.
        output: stdout and stderr of all ranks.
    """

    ranks: list[Weights]
    metrics: dict[str, float]
    folder: Path
    output: str


def launch(
    folder: Path,
    *flags: str,
    settings: tuple[str, ...] = SETTINGS,
    recipe: str = "recipes/quickstart.yaml",
    stage: str = "fit",
) -> Run:
    """Train with `settings`, then `flags`, and read what came out."""
    weights = folder / "weights"
    command = [sys.executable, "-m", "sppo_lit.cli", "run", stage, recipe, *settings, *flags]
    [output] = finished([[*command, f"--trainer.default_root_dir={folder}", *saving(weights)]])
    table = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    metrics = {name: float(value) for row in csv_rows(table) for name, value in row.items() if value}
    states = [torch.load(path, weights_only=True) for path in sorted(weights.glob("rank*.pt"))]
    return Run(states, metrics, table.parent, output)


def saving(weights: Path) -> tuple[str, str]:
    """Flags with which every rank saves the whole weights at the end of training into a folder."""
    return "--trainer.callbacks+=rank_weights.RankWeights", f"--trainer.callbacks.folder={weights}"


def finished(commands: Sequence[Sequence[str]], limit: float = LIMIT) -> list[str]:
    """Output of commands side by side, which must succeed; after `limit` seconds their process groups are killed."""
    paths = f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        outputs = [process.communicate(timeout=limit)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def difference(a: Weights, b: Weights) -> float:
    """Largest difference of any weight, relative to the largest entry of its tensor."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp(min=1e-30)) for n in a)


def repeatable(metrics: dict[str, float]) -> dict[str, float]:
    """All but times, rates, memory, and the greatest of the sampler's rounding errors, which batches shape."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("time/", "memory/")) and "second" not in name and name != "rollout/logprob_gap_max"
    }


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
