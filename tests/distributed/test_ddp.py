"""Two processes of data-parallel training against one, through the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import ADAM, TRAINER, difference, equal, launch, repeatable

TWO = ("--strategy=ddp", "--devices=2")


def test_two_ranks_of_ddp_equal_one_process(tmp_path: Path) -> None:
    one, two = launch(tmp_path / "one"), launch(tmp_path / "two", *TWO)
    first, second = two.ranks
    assert equal(first, second)
    assert any(name.startswith("critic.") for name in first) and any(name.startswith("policy.") for name in first)
    assert difference(one.ranks[0], first) <= 1e-5
    assert two.metrics["time/wait"] >= 0 and "time/wait" not in one.metrics
    for name, value in repeatable(one.metrics).items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_a_gradient_that_is_bad_on_one_rank_skips_the_step_on_all(tmp_path: Path) -> None:
    run = launch(tmp_path, *TWO, "--trainer.callbacks+=poison.Poison")
    first, second = run.ranks
    assert run.metrics["policy/skipped_steps"] == 4 and run.metrics["critic/skipped_steps"] == 0
    assert equal(first, second) and all(bool(torch.isfinite(w).all()) for w in first.values())


@pytest.mark.slow
def test_supervised_training_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    model = "--model.init_args"
    settings = (
        *TRAINER,
        f"{model}.batch.minibatch_size=8",
        f"{model}.policy_optimizer={ADAM}",
        f"{model}.verifier.workers=1",
    )
    recipe = "recipes/arithmetic/warmup.yaml"
    one = launch(tmp_path / "one", settings=settings, recipe=recipe)
    two = launch(tmp_path / "two", *TWO, settings=settings, recipe=recipe)
    assert equal(*two.ranks)
    assert difference(one.ranks[0], two.ranks[0]) <= 1e-5
