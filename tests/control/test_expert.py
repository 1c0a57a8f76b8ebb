"""The first two stages: an expert, and a clone of its successes that is as weak as was asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sppo_lit.control import expert
from sppo_lit.control.environments import ENVIRONMENTS
from sppo_lit.control.expert import HIDDEN, clone, start_policy, success_rate, train_expert
from sppo_lit.control.networks import ControlPolicy
from sppo_lit.control.settings import CloningSettings, ExpertSettings, StartSettings
from sppo_lit.errors import InputError

CARTPOLE, CAR = ENVIRONMENTS["cartpole"], ENVIRONMENTS["mountain_car"]


def quiet(line: str) -> None:
    """Print nothing."""


def never_trained(spec: Any, settings: Any, seed: int) -> Any:
    return lambda observations: np.zeros((len(observations), 1), dtype=np.float32), lambda path: None


def test_the_start_is_weak_and_comes_from_the_cache(
    start: StartSettings, weights: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.suffix for path in Path(start.cache).iterdir()}
    assert files == {".npz", ".zip", ".pt"}, "demonstrations, expert, clone"
    monkeypatch.setattr(expert, "train_expert", None)
    monkeypatch.setattr(expert, "clone", None)
    lines: list[str] = []
    again = start_policy("cartpole", CARTPOLE, HIDDEN, start, lines.append)
    assert all((again[name] == weights[name]).all() for name in weights)
    assert "succeeds in" in lines[-1] and str(start.cache) in lines[-1]
    policy = ControlPolicy(CARTPOLE, HIDDEN)
    policy.load_state_dict(dict(again))
    assert 0.1 < success_rate(CARTPOLE, policy, 256) < 0.4, "asked for 0.2"


def test_another_target_is_cloned_from_the_same_expert(start: StartSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert, "train_expert", None)
    lines: list[str] = []
    strong = StartSettings(start.expert, CloningSettings(success=0.5, episodes=64), cache=start.cache)
    before = torch.random.get_rng_state()
    start_policy("cartpole", CARTPOLE, HIDDEN, strong, lines.append)
    rate = float(lines[-1].partition("succeeds in ")[2].partition("%")[0])
    assert 50 <= rate < 75
    assert (torch.random.get_rng_state() == before).all(), "a run's own random numbers do not depend on the cache"


def test_an_expert_that_never_succeeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(expert, "train_expert", never_trained)
    settings = StartSettings(ExpertSettings(steps=500, episodes=3), cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"none of its 3 episodes of mountain_car succeeded after 500 steps; raise"):
        start_policy("mountain_car", CAR, HIDDEN, settings, quiet)
    assert not (tmp_path / "cache").exists(), "nothing is kept"


def test_nothing_to_clone_and_a_clone_that_never_succeeds() -> None:
    with pytest.raises(InputError, match="cloning: no success of the expert to imitate; raise"):
        clone(CAR, HIDDEN, torch.zeros(0, 2), torch.zeros(0, 1), CloningSettings(), 1, quiet)
    few = CloningSettings(steps=2, every=1, episodes=4)
    with pytest.raises(InputError, match=r"the clone never succeeds in 2 steps; raise model\.start\.cloning\.steps"):
        clone(CAR, HIDDEN, torch.zeros(9, 2), torch.zeros(9, 1), few, 1, quiet)
    with pytest.raises(InputError, match="success is 0; it must be above 0"):
        CloningSettings(success=0)
    with pytest.raises(InputError, match="steps is 0; it must be at least 1"):
        ExpertSettings(steps=0)


def test_a_setting_that_stable_baselines_does_not_have() -> None:
    pytest.importorskip("stable_baselines3")
    with pytest.raises(InputError, match=r"model\.start\.expert\.ppo: .*learning_rte"):
        train_expert(CAR, ExpertSettings(ppo={"learning_rte": 1e-3}), 1)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(
        InputError, match=r"the expert needs stable-baselines3 and gymnasium: pip install 'sppo-lit\[control\]'"
    ):
        start_policy("cartpole", CARTPOLE, HIDDEN, StartSettings(cache=str(tmp_path)), quiet)
