"""Settings of the benchmark's first two stages; the third has those of `sppo_lit.settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sppo_lit.errors import InputError


@dataclass(frozen=True)
class ExpertSettings:
    """The expert: PPO of stable-baselines3 on the shaped reward of an environment.

    Attributes:
        steps: environment steps of its training.
        parallel: episodes stepped together.
        episodes: played after the training; cloning gets the successes among them.
        ppo: arguments of ``stable_baselines3.PPO``, over ours (`expert.PPO_ARGUMENTS`).
    """

    steps: int = 200_000
    parallel: int = 16
    episodes: int = 200
    ppo: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "parallel", "episodes"):
            if getattr(self, name) < 1:
                raise InputError(f"model.start.expert: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class CloningSettings:
    """Behaviour cloning of the expert's successes, ended early: the start of reinforcement learning is to be weak.

    Attributes:
        success: success rate to stop at.
        tolerance: how far above it is tolerated; training is repeated in smaller parts where it jumps further.
        episodes: measured for a success rate.
        steps: most optimizer steps.
        every: optimizer steps between two measurements, at first.
        minibatch: transitions of a step.
        lr: learning rate of Adam.
    """

    success: float = 0.2
    tolerance: float = 0.05
    episodes: int = 256
    steps: int = 4000
    every: int = 64
    minibatch: int = 256
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.success <= 1:
            raise InputError(f"model.start.cloning: success is {self.success}; it must be above 0 and at most 1")
        for name in ("episodes", "steps", "every", "minibatch"):
            if getattr(self, name) < 1:
                raise InputError(f"model.start.cloning: {name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class StartSettings:
    """The policy that reinforcement learning starts from, the same for every algorithm and seed.

    Attributes:
        expert: the first stage.
        cloning: the second stage.
        seed: of both, independent of the run's.
        cache: folder where both are kept, by the hash of all that they depend on.
    """

    expert: ExpertSettings = ExpertSettings()
    cloning: CloningSettings = CloningSettings()
    seed: int = 1
    cache: str = "data/downloads/control"
