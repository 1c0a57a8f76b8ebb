"""Problems chosen from a pool on two processes: the choice is that of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import difference, equal, launch, repeatable

CHOICES = {
    "critic": ("--data.select={by: critic, pool: 3}",),
    "tracker": ("--data.select={by: tracker, pool: 2}", "--data.train.limit=40"),
}


@pytest.mark.slow
@pytest.mark.parametrize("by", CHOICES)
def test_two_ranks_choose_as_one_process(by: str, tmp_path: Path) -> None:
    one = launch(tmp_path / "one", *CHOICES[by])
    for strategy in ("ddp", "fsdp"):
        two = launch(tmp_path / strategy, *CHOICES[by], f"--strategy={strategy}", "--devices=2")
        assert equal(*two.ranks) and difference(one.ranks[0], two.ranks[0]) <= 1e-5
        for name, value in repeatable(one.metrics).items():
            assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert two.metrics["select/pool_mean"] != two.metrics["select/chosen_mean"]
