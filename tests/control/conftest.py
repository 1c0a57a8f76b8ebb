"""A weak start of CartPole, made once: expert and cloning take about fifteen seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from sppo_lit.control.environments import ENVIRONMENTS
from sppo_lit.control.expert import HIDDEN, start_policy
from sppo_lit.control.settings import CloningSettings, ExpertSettings, StartSettings


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> StartSettings:
    """Settings of a start that is in the cache."""
    pytest.importorskip("stable_baselines3")
    folder: Path = tmp_path_factory.mktemp("control")
    expert = ExpertSettings(steps=30_000, episodes=64)
    settings = StartSettings(expert, CloningSettings(episodes=64), cache=str(folder))
    start_policy("cartpole", ENVIRONMENTS["cartpole"], HIDDEN, settings, lambda line: None)
    return settings


@pytest.fixture
def weights(start: StartSettings) -> Mapping[str, Tensor]:
    """The weights of that start."""
    return start_policy("cartpole", ENVIRONMENTS["cartpole"], HIDDEN, start, lambda line: None)
