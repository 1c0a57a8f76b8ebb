"""Adapters on two processes against one, the policy without them as the reference policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import Run, difference, equal, launch, repeatable

pytest.importorskip("peft")
pytestmark = pytest.mark.slow
LORA = ("--model.lora.rank=4", "--model.lora.alpha=8", "--model.kl.coef=0.1")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three iterations of a single process."""
    return launch(tmp_path_factory.mktemp("one"), *LORA)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process(one: Run, tmp_path: Path, strategy: str) -> None:
    two = launch(tmp_path, f"--strategy={strategy}", "--devices=2", *LORA)
    first, second = two.ranks
    assert equal(first, second)
    moved = {name for name in first if "lora_B" in name and bool(first[name].any())}
    assert moved and difference(one.ranks[0], first) <= 1e-5
    for name, value in repeatable(one.metrics).items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert {p.name for p in (two.folder / "hf").iterdir()} == {"policy", "critic", "adapter"}
    again = launch(
        tmp_path / "again", f"--ckpt_path={two.folder / 'checkpoints' / 'last.ckpt'}", "--max_epochs=4", *LORA
    )
    assert again.metrics["step"] == 4
