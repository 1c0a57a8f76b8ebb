"""Episodes as line drawings, from observations alone: no renderer, no display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sppo_lit.control.environments import Floats

Lines = list[Floats]
Point = tuple[float, float]


@dataclass(frozen=True)
class Sketch:
    """How an environment is drawn; lengths in metres.

    Attributes:
        lines: observations [T, O] -> lines [T, P, 2] of what moves.
        quantity: observations [T, O] -> [T], what the criterion asks for.
        shown: format of that quantity.
        window: lower left and upper right corner.
        scenery: lines [P, 2] of what stands still.
    """

    lines: Callable[[Floats], Lines]
    quantity: Callable[[Floats], Floats]
    shown: str
    window: tuple[Point, Point]
    scenery: tuple[tuple[Point, ...], ...] = ()


def _points(*points: tuple[Floats | float, Floats | float]) -> Floats:
    """P points (x, y) of T frames each, or of all, as [T, P, 2]."""
    flat = np.broadcast_arrays(*(np.asarray(value, dtype=float) for point in points for value in point))
    return np.stack(flat, axis=-1).reshape(*flat[0].shape, len(points), 2)


def _turned(shape: tuple[Point, ...], x: Floats, y: Floats, angle: Floats) -> Floats:
    """A shape turned counterclockwise about its origin, which is then put at (x, y): [T, P, 2]."""
    cos, sin = np.cos(angle), np.sin(angle)
    return _points(*((x + cos * a - sin * b, y + sin * a + cos * b) for a, b in shape))


# ---------------------------------------------------------------------------------------------------------- CartPole

_CART = ((-0.25, 0.0), (-0.25, -0.2), (0.25, -0.2), (0.25, 0.0), (-0.25, 0.0))


def _cartpole(observed: Floats) -> Lines:
    x, angle = observed[:, 0], observed[:, 2]
    return [_turned(_CART, x, 0 * x, 0 * x), _points((x, 0), (x + np.sin(angle), np.cos(angle)))]


# ------------------------------------------------------------------------------------------------------- MountainCar


def _hill(x: Floats) -> Floats:
    return 0.45 * np.sin(3 * x) + 0.55


def _mountain_car(observed: Floats) -> Lines:
    x = observed[:, 0]
    turn = np.linspace(0, 2 * np.pi, 13)
    wheel = tuple(zip((0.06 * np.cos(turn)).tolist(), (0.06 + 0.06 * np.sin(turn)).tolist(), strict=True))
    return [_turned(wheel, x, _hill(x), 0 * x)]


_SLOPE = np.linspace(-1.2, 0.6, 40)
_FLAG = float(_hill(np.array(0.45)))

# ------------------------------------------------------------------------------------------------------------ Hopper

STEP = 0.008
"""Seconds of a step of Hopper."""


def hopper_x(observed: Floats) -> Floats:
    """Where the hopper is, [T], in metres from its start: observations [T, O] have its speed only."""
    return np.concatenate([[0.0], STEP * observed[1:, 5].cumsum()])


def hopper_joints(observed: Floats) -> Floats:
    """Top and bottom of the torso, knee, ankle, toe and heel, [T, 6, 2], with the hopper at x = 0."""
    torso, thigh, leg, foot = observed[:, 1] - np.pad(observed[:, 2:5], ((0, 0), (1, 0))).cumsum(axis=1).T
    x, z = np.zeros(len(observed)), observed[:, 0]

    def along(start: tuple[Floats, Floats], angle: Floats, forward: float, up: float) -> tuple[Floats, Floats]:
        cos, sin = np.cos(angle), np.sin(angle)
        return start[0] + cos * forward + sin * up, start[1] - sin * forward + cos * up

    top, hip = along((x, z), torso, 0, 0.2), along((x, z), torso, 0, -0.2)
    knee = along(hip, thigh, 0, -0.45)
    ankle = along(knee, leg, 0, -0.5)
    return _points(top, hip, knee, ankle, along(ankle, foot, 0.26, 0), along(ankle, foot, -0.13, 0))


# ------------------------------------------------------------------------------------------------------- LunarLander

_BODY = ((-0.5, 0.55), (-0.6, -0.3), (0.6, -0.3), (0.5, 0.55), (-0.5, 0.55))
_LEGS = (((-0.45, -0.3), (-0.8, -0.6)), ((0.45, -0.3), (0.8, -0.6)))


def _lander(observed: Floats) -> Lines:
    x, y = 10 * observed[:, 0], observed[:, 1] * 20 / 3  # gymnasium divides by half of its view
    return [_turned(shape, x, y + 0.6, observed[:, 4]) for shape in (_BODY, *_LEGS)]


SKETCHES: dict[str, Sketch] = {
    "cartpole": Sketch(
        _cartpole,
        lambda observed: np.degrees(observed[:, 2]),
        "{:+.1f}°",
        ((-1.2, -0.3), (1.2, 1.1)),
        (((-2.4, -0.2), (2.4, -0.2)),),
    ),
    "mountain_car": Sketch(
        _mountain_car,
        lambda observed: observed[:, 0],
        "x {:+.2f}",
        ((-1.25, -0.05), (0.65, 1.3)),
        (tuple(zip(_SLOPE.tolist(), _hill(_SLOPE).tolist(), strict=True)), ((0.45, _FLAG), (0.45, _FLAG + 0.25))),
    ),
    "hopper": Sketch(
        lambda observed: [hopper_joints(observed)],
        hopper_x,
        "x {:.2f} m",
        ((-1.1, -0.1), (1.1, 2.0)),
        (((-1.1, 0.0), (1.1, 0.0)),),
    ),
    "lunar_lander": Sketch(
        _lander,
        lambda observed: observed[:, 0],
        "x {:+.2f}",
        ((-8.0, -0.6), (8.0, 11.4)),
        (((-4.0, 0.0), (4.0, 0.0)),),
    ),
    "pendulum": Sketch(
        lambda observed: [_points((0, 0), (-observed[:, 1], observed[:, 0]))],
        lambda observed: observed[:, 0],
        "cos {:+.2f}",
        ((-1.2, -1.2), (1.2, 1.2)),
        (((-0.04, 0.0), (0.04, 0.0)),),
    ),
}
