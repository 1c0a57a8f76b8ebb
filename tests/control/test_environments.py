"""Environments of the control benchmark: equal to gymnasium's, deterministic, and judged as the paper says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sppo_lit.control.environments import CARTPOLE, ENVIRONMENTS, MOUNTAIN_CAR, PENDULUM, environment
from sppo_lit.errors import InputError

GYMNASIUM = {
    "cartpole": "CartPole-v1",
    "mountain_car": "MountainCarContinuous-v0",
    "hopper": "Hopper-v5",
    "lunar_lander": "LunarLander-v3",
    "pendulum": "Pendulum-v1",
}
PAPER = {  # horizon, trajectories of an update, episodes
    "cartpole": (200, 64, 50_000),
    "mountain_car": (1000, 8, 10_000),
    "hopper": (1000, 8, 20_000),
    "lunar_lander": (1000, 16, 30_000),
    "pendulum": (1000, 16, 20_000),
}


def random_actions(name: str, steps: int, batch: int, seed: int = 0) -> np.ndarray:
    spec, rng = ENVIRONMENTS[name], np.random.default_rng(seed)
    if spec.discrete:
        return rng.integers(spec.actions, size=(steps, batch))
    return rng.normal(size=(steps, batch, spec.actions)).astype(np.float32)


def made(name: str) -> Any:
    try:
        return ENVIRONMENTS[name].make()
    except InputError as error:
        pytest.skip(str(error))


def test_the_table_has_the_sizes_of_the_paper() -> None:
    assert {name: (s.horizon, s.update, s.episodes) for name, s in ENVIRONMENTS.items()} == PAPER


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_go_as_in_gymnasium(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    batch, steps = 4, 150
    ours, actions = made(name), random_actions(name, steps, batch)
    theirs = [gymnasium.make(GYMNASIUM[name]).unwrapped for _ in range(batch)]
    expected = np.stack([one.reset(seed=7 + i)[0] for i, one in enumerate(theirs)])
    observed, ended = ours.reset(range(7, 7 + batch)), np.zeros(batch, dtype=bool)
    assert observed.shape == (batch, ENVIRONMENTS[name].observations) and observed.dtype == np.float32
    np.testing.assert_allclose(observed, expected, atol=1e-6)
    for t in range(steps):
        for i in np.flatnonzero(~ended):
            action = actions[t, i]
            expected[i], _, ended[i], *_ = theirs[i].step(
                action if action.ndim == 0 else action.clip(theirs[i].action_space.low, theirs[i].action_space.high)
            )
        step = ours.step(actions[t])
        np.testing.assert_allclose(step.observations, expected, atol=2e-4, err_msg=f"step {t}")
        assert (step.ended == ended).all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_seed_and_actions_decide_an_episode_whatever_runs_beside_it(name: str) -> None:
    actions = random_actions(name, 60, 1)
    alone, beside, group = made(name), made(name), made(name)
    alone.reset([3])
    beside.reset([99, 3])
    beside.step(np.repeat(actions[0], 2, axis=0))  # episodes may be started again at any time
    beside.reset([3], rows=[1])
    same = group.reset([3, 3, 3])
    assert (same == same[0]).all(), "a group shares its initial state"
    for action in actions:
        one = alone.step(action)
        two = beside.step(np.repeat(action, 2, axis=0))
        three = group.step(np.repeat(action, 3, axis=0))
        assert (two.observations[1] == one.observations[0]).all() and two.dense[1] == one.dense[0]
        assert (three.observations == one.observations[0]).all()
        assert not np.isnan(one.dense).any()
    assert alone.succeeded()[0] == beside.succeeded()[1] == group.succeeded()[2]


def test_an_episode_that_has_ended_stays_as_it_is() -> None:
    cars = made("cartpole")
    cars.reset([1, 2])
    for _ in range(100):  # pushed to one side the pole falls
        step = cars.step(np.array([1, 1]))
    assert step.ended.all() and (step.dense == 0).all() and not cars.succeeded().any()
    assert (cars.step(np.array([0, 0])).observations == step.observations).all()


@pytest.mark.parametrize(
    ("dynamics", "states", "verdicts"),
    [
        (CARTPOLE, [[0, 0, 0.008, 0], [0, 9, -0.008, 9], [0, 0, 0.009, 0], [2.5, 0, 0, 0]], [1, 1, 0, 0]),
        (MOUNTAIN_CAR, [[0.45, 0], [0.449, 0.07]], [1, 0]),
        (PENDULUM, [[0, 8], [0.64, 0], [0.65, 0], [2 * np.pi, 0], [np.pi, 0]], [1, 1, 0, 1, 0]),
    ],
)
def test_criteria_of_the_paper(dynamics: Any, states: list[list[float]], verdicts: list[int]) -> None:
    assert dynamics.succeeded(np.array(states, dtype=float)).tolist() == [bool(v) for v in verdicts]


def test_hopper_and_lander_are_judged_by_where_they_stand() -> None:
    class Hopper:
        is_healthy = True

        class data:
            qpos = np.array([1.01])

    class Lander:
        game_over = False

    from sppo_lit.control.environments import _hopped, _landed

    hopper, lander, landed = Hopper(), Lander(), np.array([0.39, 0, 0, 0, 0, 0, 1, 1])
    assert _hopped(hopper, landed) and _landed(lander, landed)
    assert not _landed(lander, np.array([0.41, 0, 0, 0, 0, 0, 1, 1]))
    assert not _landed(lander, np.array([0.0, 0, 0, 0, 0, 0, 1, 0]))
    hopper.is_healthy, lander.game_over = False, True
    assert not _hopped(hopper, landed) and not _landed(lander, landed)


def test_an_unknown_environment_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"model\.environment 'walker' is unknown; choose one of: cartpole, "):
        environment("walker")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(InputError, match=r"Hopper-v5 needs gymnasium .*: pip install 'sppo-lit\[control\]'"):
        ENVIRONMENTS["hopper"].make()
    ENVIRONMENTS["cartpole"].make().reset([1])  # simulated here
