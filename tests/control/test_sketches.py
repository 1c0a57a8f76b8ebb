"""Line drawings agree with the simulators that they are drawn for."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_lit.control.environments import ENVIRONMENTS
from sppo_lit.control.sketches import SKETCHES, hopper_joints, hopper_x


def test_every_environment_has_one() -> None:
    assert SKETCHES.keys() == ENVIRONMENTS.keys()
    for name, spec in ENVIRONMENTS.items():
        observed = np.zeros((5, spec.observations), dtype=np.float32)
        assert all(line.ndim == 3 and line.shape[::2] == (5, 2) for line in SKETCHES[name].lines(observed))
        assert SKETCHES[name].quantity(observed).shape == (5,)


def test_hopper_is_where_mujoco_has_it() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    hopper = gymnasium.make("Hopper-v5").unwrapped
    observed, _ = hopper.reset(seed=3)
    rng, frames, places, ends = np.random.default_rng(0), [observed], [hopper.data.qpos[0]], []
    for _ in range(60):
        observed = hopper.step(rng.uniform(-1, 1, size=3))[0]
        frames.append(observed)
        places.append(hopper.data.qpos[0])
        center, turn = hopper.data.geom("foot_geom").xpos, hopper.data.geom("foot_geom").xmat.reshape(3, 3)
        middles = [hopper.data.geom(f"{part}_geom").xpos[::2] for part in ("torso", "thigh", "leg")]
        half = 0.195 * turn[::2, 2]  # a capsule lies along its own z
        ends.append(np.array([*middles, center[::2] + half, center[::2] - half]) - [hopper.data.qpos[0], 0])
    observations = np.array(frames)
    joints = hopper_joints(observations)[1:]
    middles = (joints[:, :3] + joints[:, 1:4]) / 2
    np.testing.assert_allclose(middles, np.array(ends)[:, :3], atol=1e-4)
    feet = np.sort(np.array(ends)[:, 3:], axis=1)
    np.testing.assert_allclose(np.sort(joints[:, 4:], axis=1), feet, atol=1e-4)
    np.testing.assert_allclose(hopper_x(observations), np.array(places) - places[0], atol=0.02)


def test_what_the_criterion_asks_for() -> None:
    lander = np.zeros((1, 8), dtype=np.float32)
    lander[0, 0] = 0.4
    assert SKETCHES["lunar_lander"].shown.format(SKETCHES["lunar_lander"].quantity(lander)[0]) == "x +0.40"
    upright = np.array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(SKETCHES["pendulum"].lines(upright)[0][0, 1], [0, 1])
