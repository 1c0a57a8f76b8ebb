"""Control environments with a verifiable outcome: a fixed horizon, no reward until the end, then 0 or 1.

The initial state is the "prompt", named by a seed: episodes of one seed start alike, and a group of samples shares it.
With the same actions they go on alike. Each environment is a row of `ENVIRONMENTS` and is stepped as a vector of B
episodes. Three of them are simulated here, all episodes in one array operation, step by step as in gymnasium; Hopper
and LunarLander are gymnasium's (extra ``control``).

An episode ends before the horizon where its outcome is decided: the pole or the hopper has fallen, the lander has
crashed or come to rest, the car has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sppo_lit.errors import InputError

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

EXTRA = "pip install 'sppo-lit[control]'"


class Step(NamedTuple):
    """What a vector of B episodes did in one step.

    Attributes:
        observations: [B, O] float32; of an episode that had ended, the last one again.
        dense: [B] float32, the shaped reward (for the expert, and to test PPO against other code); never the outcome.
        ended: [B] bool, the episode has ended, now or before.
    """

    observations: Floats
    dense: Floats
    ended: Booleans


class VectorEnvironment(Protocol):
    """B episodes of one environment that are stepped together."""

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> Floats:
        """Start episodes; returns the observations of all, [B, O] float32.

        Args:
            seeds: of the initial states.
            rows: episodes to start again; None starts as many as there are seeds.
        """

    def step(self, actions: NDArray[Any]) -> Step:
        """Step every episode that has not ended; actions are [B] int64, or [B, A] float32, clipped to their range."""

    def succeeded(self) -> Booleans:
        """[B], whether the present states fulfil the criterion."""


class Dynamics(NamedTuple):
    """Equations of a simulated environment, on states [B, S] float64 and actions as in `VectorEnvironment.step`.

    Attributes:
        initial: draws one initial state, [S].
        advance: (states, actions) -> next states.
        observe: states -> observations [B, O].
        ended: states -> [B] bool.
        succeeded: states -> [B] bool.
        dense: (states before, actions, states after) -> [B], the shaped reward.
    """

    initial: Callable[[np.random.Generator], Floats]
    advance: Callable[[Floats, Floats], Floats]
    observe: Callable[[Floats], Floats]
    ended: Callable[[Floats], Booleans]
    succeeded: Callable[[Floats], Booleans]
    dense: Callable[[Floats, Floats, Floats], Floats]


class Simulated:
    """Episodes advanced by array operations over all of them."""

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics
        self.states: Floats = np.zeros((0, 0))
        self._ended: Booleans = np.zeros(0, dtype=bool)

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> Floats:
        """See `VectorEnvironment`; the state of a seed is the one that gymnasium draws for it."""
        fresh = np.stack([self._dynamics.initial(np.random.default_rng(seed)) for seed in seeds])
        if rows is None:
            self.states, self._ended = fresh, np.zeros(len(fresh), dtype=bool)
        else:
            self.states, self._ended = self.states.copy(), self._ended.copy()  # others may hold the old ones
            self.states[rows], self._ended[rows] = fresh, False
        return self._observations()

    def step(self, actions: NDArray[Any]) -> Step:
        """See `VectorEnvironment`."""
        before, dynamics = self.states, self._dynamics
        after = np.where(self._ended[:, None], before, dynamics.advance(before, actions))
        dense = np.where(self._ended, 0.0, dynamics.dense(before, actions, after)).astype(np.float32)
        self.states, self._ended = after, self._ended | dynamics.ended(after)
        return Step(self._observations(), dense, self._ended)

    def succeeded(self) -> Booleans:
        """See `VectorEnvironment`."""
        return self._dynamics.succeeded(self.states)

    def _observations(self) -> Floats:
        return self._dynamics.observe(self.states).astype(np.float32)


def _step_each(environments: Sequence[Any], actions: NDArray[Any]) -> tuple[Any, Any, Any]:
    """A step of some of gymnasium's environments, with their own rewards."""
    steps = [one.step(action) for one, action in zip(environments, actions, strict=True)]
    observed, rewards, ended, *_ = zip(*steps, strict=True)
    return observed, rewards, ended


class Stepped:
    """Episodes of an environment of gymnasium, stepped one after the other.

    Args:
        name: its id.
        succeeded: (environment, last observation) -> whether the criterion is fulfilled.
        step: (environments, their actions) -> observations, shaped rewards, whether the episodes have ended.

    Raises:
        InputError: gymnasium or its physics is not installed.
    """

    def __init__(
        self,
        name: str,
        succeeded: Callable[[Any, Floats], bool],
        step: Callable[[Sequence[Any], NDArray[Any]], tuple[Any, Any, Any]] = _step_each,
    ) -> None:
        self._name, self._succeeded, self._step = name, succeeded, step
        self._environments: list[Any] = []
        self._observed: Floats = np.zeros((0, 0), dtype=np.float32)
        self._ended: Booleans = np.zeros(0, dtype=bool)
        self._make()

    def _make(self) -> Any:
        try:
            import gymnasium

            return gymnasium.make(self._name).unwrapped  # without wrappers: the horizon is ours
        except Exception as error:
            # A missing package, of gymnasium or of its physics, is an ImportError or an error of gymnasium's own.
            if isinstance(error, ImportError) or type(error).__name__ == "DependencyNotInstalled":
                raise InputError(f"{self._name} needs gymnasium and its physics: {EXTRA}") from error
            raise

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> Floats:
        """See `VectorEnvironment`."""
        if rows is None:
            self._environments += [self._make() for _ in range(len(seeds) - len(self._environments))]
            rows = range(len(seeds))
            self._ended = np.zeros(len(seeds), dtype=bool)
            self._observed = np.zeros((len(seeds), *self._environments[0].observation_space.shape), dtype=np.float32)
        for row, seed in zip(rows, seeds, strict=True):
            self._observed[row], _ = self._environments[row].reset(seed=seed)
            self._ended[row] = False
        return self._observed.copy()

    def step(self, actions: NDArray[Any]) -> Step:
        """See `VectorEnvironment`."""
        dense = np.zeros(len(self._ended), dtype=np.float32)
        rows = np.flatnonzero(~self._ended)
        if len(rows):
            stepped = self._step([self._environments[row] for row in rows], actions[rows])
            self._observed[rows], dense[rows], self._ended[rows] = stepped
        return Step(self._observed.copy(), dense, self._ended.copy())

    def succeeded(self) -> Booleans:
        """See `VectorEnvironment`."""
        pairs = zip(self._environments, self._observed, strict=False)
        return np.array([self._succeeded(environment, observed) for environment, observed in pairs])


def _between(values: Floats, low: float, high: float) -> Floats:
    return np.minimum(np.maximum(values, low), high)  # of so few numbers, np.clip takes several times as long


# ---------------------------------------------------------------------------------------------------------- CartPole

_FALLEN, _TRACK, _PRECISE = np.radians(12), 2.4, np.radians(0.5)  # rad, m, rad


def _cartpole(states: Floats, actions: Floats) -> Floats:
    """Barto, Sutton and Anderson 1983: cart of 1 kg, pole of 0.1 kg and 1 m, a push of 10 N, steps of 20 ms."""
    _, speed, angle, spin = states.T
    cos, sin = np.cos(angle), np.sin(angle)
    common = (np.where(actions == 1, 10.0, -10.0) + 0.05 * spin**2 * sin) / 1.1
    turn = (9.8 * sin - cos * common) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    push = common - 0.05 * turn * cos / 1.1
    return states + 0.02 * np.stack([speed, push, spin, turn], axis=1)


def _out(states: Floats) -> Booleans:
    return (np.abs(states[:, 0]) > _TRACK) | (np.abs(states[:, 2]) > _FALLEN)


CARTPOLE = Dynamics(
    initial=lambda rng: rng.uniform(-0.05, 0.05, size=4),
    advance=_cartpole,
    observe=lambda states: states,
    ended=_out,
    succeeded=lambda states: ~_out(states) & (np.abs(states[:, 2]) <= _PRECISE),
    dense=lambda before, actions, after: (
        1.0
        - np.abs(after[:, 2]) / _FALLEN
        - 0.2 * np.abs(after[:, 0]) / _TRACK
        - 0.2 * np.minimum(np.abs(after[:, 3]), 2)
    ),
)

# ------------------------------------------------------------------------------------------------------- MountainCar


def _mountain_car(states: Floats, actions: Floats) -> Floats:
    """Moore 1990, with a continuous force: a car too weak for the slope has to swing."""
    x, speed = states.T
    speed = speed + 0.0015 * _between(actions[:, 0], -1, 1) - 0.0025 * np.cos(3 * x)
    speed = _between(speed, -0.07, 0.07)
    x = _between(x + speed, -1.2, 0.6)
    return np.stack([x, np.where((x <= -1.2) & (speed < 0), 0.0, speed)], axis=1)


def _energy(states: Floats) -> Floats:
    """Mechanical energy per unit of mass, for each 0.0025 of gravity."""
    return np.sin(3 * states[:, 0]) / 3 + 0.5 * states[:, 1] ** 2 / 0.0025


MOUNTAIN_CAR = Dynamics(
    initial=lambda rng: np.array([rng.uniform(-0.6, -0.4), 0.0]),
    advance=_mountain_car,
    observe=lambda states: states,
    ended=lambda states: states[:, 0] >= 0.45,
    succeeded=lambda states: states[:, 0] >= 0.45,
    dense=lambda before, actions, after: 10 * (_energy(after) - _energy(before)) + 10 * (after[:, 0] >= 0.45) - 0.01,
)

# ---------------------------------------------------------------------------------------------------------- Pendulum


def _pendulum(states: Floats, actions: Floats) -> Floats:
    """A rod of 1 kg and 1 m under 10 m/s², a torque of at most 2 N·m, steps of 50 ms; the angle is 0 upright."""
    angle, spin = states.T
    spin = _between(spin + 0.05 * (15 * np.sin(angle) + 3 * _between(actions[:, 0], -2, 2)), -8, 8)
    return np.stack([angle + 0.05 * spin, spin], axis=1)


PENDULUM = Dynamics(
    initial=lambda rng: rng.uniform([-np.pi, -1.0], [np.pi, 1.0]),
    advance=_pendulum,
    observe=lambda states: np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1),
    ended=lambda states: np.zeros(len(states), dtype=bool),
    succeeded=lambda states: np.cos(states[:, 0]) > 0.8,
    dense=lambda before, actions, after: (
        -(((before[:, 0] + np.pi) % (2 * np.pi) - np.pi) ** 2)
        - 0.1 * before[:, 1] ** 2
        - 0.001 * _between(actions[:, 0], -2, 2) ** 2
    ),
)

# --------------------------------------------------------------------------------------------- Hopper and LunarLander


def _hopped(environment: Any, observed: Floats) -> bool:
    return bool(environment.is_healthy and environment.data.qpos[0] > 1.0)


def _hop(environments: Sequence[Any], actions: Floats) -> tuple[Floats, Floats, Booleans]:
    """A step of some Hoppers, equal to gymnasium's, whose bookkeeping takes as long as the physics: here arrays do it.

    The shaped reward leaves out the cost of control, and what is gained by running faster, which ends in falls.
    """
    from mujoco import mj_step

    data = [one.data for one in environments]
    before = np.array([one.qpos[0] for one in data])
    for one, state, forces in zip(environments, data, actions.clip(-1.0, 1.0), strict=True):
        state.ctrl[:] = forces
        mj_step(one.model, state, one.frame_skip)
    positions, velocities = (np.stack(column) for column in zip(*((one.qpos, one.qvel) for one in data), strict=True))
    speeds = (positions[:, 0] - before) / environments[0].dt
    observed = np.concatenate([positions[:, 1:], _between(velocities, -10, 10)], axis=1)
    extreme = np.maximum(np.abs(positions[:, 2:]).max(axis=1), np.abs(velocities).max(axis=1))
    healthy = (positions[:, 1] > 0.7) & (np.abs(positions[:, 2]) < 0.2) & (extreme < 100)  # gymnasium's `is_healthy`
    return observed, 1.0 + np.minimum(speeds, 1.0), ~healthy


def _landed(environment: Any, observed: Floats) -> bool:
    legs = observed[6] > 0.5 and observed[7] > 0.5
    return bool(legs and abs(observed[0]) < 0.4 and not environment.game_over)


@dataclass(frozen=True)
class EnvironmentSpec:
    """A row of the table: what is asked of an episode, and the paper's sizes.

    Attributes:
        title: for people.
        criterion: what counts as success, for people.
        horizon: most steps of an episode.
        observations: O, entries of an observation.
        actions: number of actions, or A, entries of a continuous one.
        discrete: whether actions are numbered.
        make: makes a vector of episodes.
        update: episodes of an iteration (paper).
        episodes: episodes of a training (paper).
    """

    title: str
    criterion: str
    horizon: int
    observations: int
    actions: int
    discrete: bool
    make: Callable[[], VectorEnvironment]
    update: int
    episodes: int


ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    "cartpole": EnvironmentSpec(
        "Precision CartPole", "|angle| ≤ 0.5° at the end", 200, 4, 2, True, lambda: Simulated(CARTPOLE), 64, 50_000
    ),
    "mountain_car": EnvironmentSpec(
        "MountainCar", "x ≥ 0.45 reached", 1000, 2, 1, False, lambda: Simulated(MOUNTAIN_CAR), 8, 10_000
    ),
    "hopper": EnvironmentSpec(
        "Hopper",
        "upright, x > 1 m at the end",
        1000,
        11,
        3,
        False,
        lambda: Stepped("Hopper-v5", _hopped, _hop),
        8,
        20_000,
    ),
    "lunar_lander": EnvironmentSpec(
        "LunarLander",
        "both legs on the ground, |x| < 0.4",
        1000,
        8,
        4,
        True,
        lambda: Stepped("LunarLander-v3", _landed),
        16,
        30_000,
    ),
    "pendulum": EnvironmentSpec(
        "Pendulum", "cos θ > 0.8 at the end", 1000, 3, 1, False, lambda: Simulated(PENDULUM), 16, 20_000
    ),
}


def environment(name: str) -> EnvironmentSpec:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in ENVIRONMENTS:
        raise InputError(f"model.environment {name!r} is unknown; choose one of: {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]
