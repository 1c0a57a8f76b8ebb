"""Two processes of data-parallel training against one, through the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import difference, equal, launch


def test_two_ranks_of_ddp_equal_one_process(tmp_path: Path) -> None:
    one, two = launch(tmp_path / "one"), launch(tmp_path / "two", "--strategy=ddp", "--devices=2")
    first, second = two.ranks
    assert equal(first, second)
    assert any(name.startswith("critic.") for name in first) and any(name.startswith("policy.") for name in first)
    assert difference(one.ranks[0], first) <= 1e-5
    assert two.metrics["time/wait"] >= 0 and "time/wait" not in one.metrics
    for name, value in one.metrics.items():
        if not name.startswith("time/") and "per_second" not in name:
            assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
