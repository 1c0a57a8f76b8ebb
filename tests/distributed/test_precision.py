"""Every precision that the command line offers trains, on one process and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import equal, launch

TWO = ("--strategy=fsdp", "--devices=2")


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("bf16-true", ()),
        pytest.param("bf16-true", TWO, marks=pytest.mark.slow),
        pytest.param("bf16-mixed", (*TWO, "--model.memory.gradient_checkpointing=true"), marks=pytest.mark.slow),
        pytest.param("bf16-mixed", ("--strategy=ddp", "--devices=2"), marks=pytest.mark.slow),
    ],
    ids=["bf16-true", "bf16-true fsdp", "bf16-mixed fsdp", "bf16-mixed ddp"],
)
def test_an_iteration_in_this_precision(tmp_path: Path, precision: str, flags: tuple[str, ...]) -> None:
    run = launch(tmp_path, f"--precision={precision}", "--max_epochs=1", "--model.ppo.critic_warmup=0", *flags)
    assert run.metrics["policy/first_ratio_deviation"] == 0
    assert run.metrics["rollout/logprob_gap"] < 0.01, "sampler and forward pass are the same function"
    assert 0 < run.metrics["policy/grad_norm"] < 10
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert all(weight.dtype == expected for weight in run.ranks[0].values())
    assert all(equal(run.ranks[0], other) for other in run.ranks)
