"""Seconds of the quickstart's iteration, alone and beside one busy program, for ways in which OpenMP's threads wait.

Every round runs each way once alone and once beside a program that keeps one core busy, in turns; the first two
iterations of a run are left out.

    python benchmarks/bench_threads.py --rounds 3
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

WAYS = {
    "as it is run": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OTHERS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SKIPPED = 2


def seconds(way: dict[str, str], iterations: int) -> float:
    """Median time of an iteration of a run."""
    environment = {key: value for key, value in os.environ.items() if key not in OTHERS} | way
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max_epochs", str(iterations), "--trainer.num_sanity_val_steps", "0"]
        flags += ["--trainer.check_val_every_n_epoch", "1000", "--trainer.default_root_dir", folder]
        command = [sys.executable, "-m", "sppo_lit.cli", "run", "recipes/quickstart.yaml", *flags]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with next(Path(folder).rglob("metrics.csv")).open() as file:
            times = [float(row["time/iteration"]) for row in csv.DictReader(file) if row["time/iteration"]]
    return statistics.median(times[SKIPPED:])


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    args = parser.parse_args()
    alone: dict[str, list[float]] = {name: [] for name in WAYS}
    beside: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            alone[name].append(seconds(way, args.iterations))
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside[name].append(seconds(way, args.iterations))
            finally:
                busy.kill()
                busy.wait()
    print(f"{os.cpu_count()} cores, median of {args.rounds} rounds (least to most), seconds an iteration\n")
    print("| threads | alone | beside a busy program | ratio |\n|---|---|---|---|")
    for name in WAYS:
        a, b = statistics.median(alone[name]), statistics.median(beside[name])
        spread = [f"{min(x):.2f} to {max(x):.2f}" for x in (alone[name], beside[name])]
        print(f"| {name} | {a:.2f} ({spread[0]}) | {b:.2f} ({spread[1]}) | {b / a:.1f}× |")


if __name__ == "__main__":
    main()
