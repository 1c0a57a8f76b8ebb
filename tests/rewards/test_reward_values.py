"""What a custom reward may return, and what it is called in the metrics."""

from __future__ import annotations

from typing import Any

import pytest

from sppo_lit.rewards.custom import reward_names, run_reward


@pytest.mark.parametrize("result", [1, 0.5, True, -1e9])
def test_numbers_are_rewards(result: Any) -> None:
    assert run_reward(lambda response, gold: result, "", "") == (float(result), "")


@pytest.mark.parametrize(
    "result", [float("nan"), float("inf"), 1e308, "good", "1", None, [1.0]], ids=lambda result: repr(result)
)
def test_anything_else_is_a_failure_that_names_it(result: Any) -> None:
    value, error = run_reward(lambda response, gold: result, "", "")
    assert value == 0 and (repr(result) in error or "TypeError" in error)


def test_names_are_short_and_different() -> None:
    specs = ["my/files/style.py:short", "other.style.short", "pkg.mod:brief", "größe.py:größe", "a b.py:short"]
    names = list(reward_names(specs).values())
    assert names[:3] == ["style.short", "style.short_2", "brief"] and names[4] == "a_b.short"
    assert len(set(names)) == 5 and all(" " not in name and "/" not in name for name in names)
