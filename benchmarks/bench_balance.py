"""Idle time of ranks while they update, with rows of a minibatch kept where they were sampled or shared out by length.

    python benchmarks/bench_balance.py                    # simulated for 2, 4, 8 and 16 ranks
    python benchmarks/bench_balance.py --old CHECKOUT     # also measured: two ranks of this and of another checkout

The simulation draws lengths as a 7B recipe might have them (512 sequences, minibatches of 32, prompts of 150 tokens,
log-normal responses with a median of 2,000 tokens, cut off at 8,192), takes the time of a rank as proportional to its
tokens, and every optimizer step as long as that of the slowest rank. The measurement is `time/wait` of the quickstart
with responses of 1 to 96 tokens; it includes the wait after sampling, which is the same in both.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sppo_lit.algorithms.batching import balanced_shares, shared_minibatches

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS, SIZE, PROMPT, MEDIAN, SPREAD, LONGEST = 512, 32, 150, 2000.0, 0.8, 8192
FLAGS = (
    "--strategy=ddp",
    "--devices=2",
    "--accelerator=cpu",
    "--seed_everything=5",
    "--max_epochs=4",
    "--data.problems_per_epoch=64",
    "--data.val=[]",
    "--model.batch.minibatch_size=8",
    "--model.sampling.max_new_tokens=96",
    "--model.verifier.workers=1",
)


def idle(kept: bool, ranks: int, rounds: int = 50) -> float:
    """Mean share of a rank's time in which it waits for the slowest one."""
    generator, waited, spent = torch.Generator().manual_seed(0), 0.0, 0.0
    for _ in range(rounds):
        responses = (MEDIAN * torch.exp(SPREAD * torch.randn(PROBLEMS, generator=generator))).clamp(1, LONGEST)
        lengths = PROMPT + responses.long()
        for rows in shared_minibatches(PROBLEMS, 1, SIZE, generator):
            shares = [rows[rows % ranks == r] for r in range(ranks)] if kept else balanced_shares(rows, lengths, ranks)
            tokens = [int(lengths[share].sum()) for share in shares]
            waited += sum(max(tokens) - own for own in tokens)
            spent += max(tokens) * ranks
    return waited / spent


def measured(checkout: Path) -> tuple[float, float]:
    """Seconds of waiting and of updating of two ranks of a checkout, without the first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sppo_lit.cli", "run", "fit", "recipes/quickstart.yaml", *FLAGS]
        subprocess.run(
            [*command, f"--trainer.default_root_dir={folder}"],
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)},
            check=True,
            capture_output=True,
        )
        [table] = Path(folder).rglob("metrics.csv")
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("time/update")][1:]
    return sum(float(row["time/wait"]) for row in rows), sum(float(row["time/update"]) for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="a checkout whose rows stay where they were sampled")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement, interleaved (default 3)")
    options = parser.parse_args(arguments)
    print("simulated idle share of the update: ranks, rows kept, shared out by length")
    for ranks in (2, 4, 8, 16):
        print(f"{ranks:3d}  {idle(True, ranks):6.1%}  {idle(False, ranks):6.1%}", flush=True)
    for _ in range(options.rounds if options.old else 0):
        for name, checkout in (("kept", options.old.resolve()), ("shared out", ROOT)):
            wait, update = measured(checkout)
            print(f"measured on two ranks, rows {name}: waited {wait:.2f} s, updated {update:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
