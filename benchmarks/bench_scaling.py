"""Weak scaling: sequences per second of two CPU processes against one, each with one thread and the same load.

    python benchmarks/bench_scaling.py [--rounds 3] [--strategy ddp] [--processes 2]

Whole iterations (sampling, verifying, values, update) of recipes/quickstart.yaml through the command line, with
`--sequences` per process and iteration in minibatches of a quarter of them. Runs of one process and of several are
interleaved; the first iteration of each is left out. Needs as many idle cores as processes.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("iteration", "rollout", "verify", "values", "update", "wait")


def seconds(processes: int, strategy: str, sequences: int, iterations: int) -> dict[str, float]:
    """Median seconds of an iteration and of each of its phases (mean over processes) in one run.

    Args:
        processes: number of processes.
        strategy: strategy for several processes.
        sequences: sequences per process and iteration.
        iterations: number of timed iterations, after one to warm up.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--max_epochs={iterations + 1}",
            "--accelerator=cpu",
            f"--devices={processes}",
            f"--strategy={strategy if processes > 1 else 'auto'}",
            f"--data.problems_per_epoch={sequences * processes}",
            f"--model.batch.minibatch_size={sequences * processes // 4}",
            "--model.verifier.workers=1",
            "--data.val=[]",
            "--trainer.limit_val_batches=0",
            f"--checkpoint.every_n_iterations={iterations + 1}",
            f"--trainer.default_root_dir={folder}",
        ]
        command = [sys.executable, "-m", "sppo_lit.cli", "run", "recipes/quickstart.yaml", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\nexit code {done.returncode}: {' '.join(command)}")
        with next(Path(folder).rglob("metrics.csv")).open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("time/iteration")][1:]
    return {p: statistics.median(float(row.get(f"time/{p}") or 0) for row in rows) for p in PHASES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Weak scaling over processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6, help="timed in each run")
    parser.add_argument("--sequences", type=int, default=256, help="of one process and iteration")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--strategy", default="ddp", choices=("ddp", "fsdp"))
    args = parser.parse_args()

    counts = (1, args.processes)
    runs: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
    for _ in range(args.rounds):
        for n in counts:
            runs[n].append(seconds(n, args.strategy, args.sequences, args.iterations))
    speeds = {n: [n * args.sequences / run["iteration"] for run in runs[n]] for n in counts}
    ratios = [many / one for one, many in zip(*speeds.values(), strict=True)]

    table = Table(title=f"{args.sequences} sequences per process and iteration, {args.rounds} rounds, {args.strategy}")
    for column in ("processes", "sequences/s", *(f"{phase}, s" for phase in PHASES)):
        table.add_column(column, justify="right")
    for n in counts:
        times = (f"{statistics.median(run[phase] for run in runs[n]):.2f}" for phase in PHASES)
        table.add_row(str(n), f"{statistics.median(speeds[n]):,.0f}", *times)
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{args.processes} processes against 1: {statistics.median(ratios):.2f}x (median; {min(ratios):.2f}x to "
        f"{max(ratios):.2f}x)"
    )


if __name__ == "__main__":
    main()
