"""Two processes against one, through the real command line; a hard limit ends the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

SETTINGS = [
    "--seed_everything=5",
    "--max_epochs=3",
    "--accelerator=cpu",
    "--data.problems_per_epoch=32",
    "--data.val=[{path: arithmetic, limit: 21}]",
    "--model.minibatch_size=32",
    "--model.ppo_epochs=2",
    "--model.critic_warmup=1",
    "--model.micro_batch_tokens=300",
    "--model.old_logprobs=recompute",
    # A larger epsilon: Adam would otherwise blow up the float error of gradients that are almost zero.
    "--model.policy_optimizer={lr: 0.001, eps: 0.001}",
    "--model.critic_optimizer={lr: 0.001, eps: 0.001}",
]


def run(folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    """Train three iterations and return the last checkpoint's weights."""
    command = [sys.executable, "-m", "sppo_lit.cli", "run", "recipes/quickstart.yaml", *SETTINGS, *flags]
    process = subprocess.Popen(
        [*command, f"--trainer.default_root_dir={folder}"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    last = next(folder.rglob("last.ckpt"))
    return torch.load(last, weights_only=True)["state_dict"]


def test_two_ranks_of_ddp_equal_one_process(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one"), run(tmp_path / "two", "--strategy=ddp", "--devices=2")
    assert one.keys() == two.keys() and one["iterations_done"] == 3
    for name, weight in one.items():
        scale = float(weight.float().abs().max()) or 1.0
        difference = float((weight.float() - two[name].float()).abs().max())
        assert difference <= 1e-5 * scale, f"{name}: {difference / scale:.1e}"
