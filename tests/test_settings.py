"""Learning rates over a run, and settings that cannot mean anything."""

from __future__ import annotations

from typing import Any

import pytest

from sppo_lit.errors import InputError
from sppo_lit.settings import EvalSettings, OptimizerSettings


def rates(**settings: object) -> list[float]:
    optimizer = OptimizerSettings(lr=1.0, **settings)  # type: ignore[arg-type]
    return [8 * optimizer.lr_at(i, 10) for i in range(10)]


def test_learning_rates_warm_up_and_decay() -> None:
    assert rates() == [8.0] * 10
    assert rates(warmup_iterations=4) == [2, 4, 6, 8, 8, 8, 8, 8, 8, 8]
    assert rates(schedule="linear", warmup_iterations=2) == [4, 8, *[8 - i for i in range(8)]]
    cosine = rates(schedule="cosine")
    assert cosine[0] == 8 and cosine[5] == pytest.approx(4) and 0 < cosine[9] < 0.2
    assert cosine == sorted(cosine, reverse=True)


def test_a_run_prolonged_beyond_its_schedule_stays_at_zero() -> None:
    assert OptimizerSettings(lr=1.0, schedule="linear").lr_at(15, 10) == 0


def test_an_evaluation_that_says_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        EvalSettings(greedy=False)
    with pytest.raises(InputError, match="would all be equal"):
        EvalSettings(samples=4, temperature=0)


@pytest.mark.parametrize(
    ("group", "setting", "value"),
    [
        (OptimizerSettings, "lr", -1e-4),
        (OptimizerSettings, "lr", float("nan")),
        (OptimizerSettings, "weight_decay", -0.1),
        (OptimizerSettings, "betas", (0.9, 1.0)),
        (OptimizerSettings, "clip_norm", 0.0),
        (OptimizerSettings, "warmup_iterations", -1),
        (EvalSettings, "samples", -1),
        (EvalSettings, "max_new_tokens", 0),
    ],
)
def test_numbers_that_cannot_be_meant_are_named(group: Any, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f": {setting} is .*; it must be "):
        group(**{setting: value})


def test_clipping_may_be_off() -> None:
    assert OptimizerSettings(clip_norm=float("inf")).clip_norm == float("inf")
