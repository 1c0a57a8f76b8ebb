"""Sources whose problems are generated: one row each in `PROCEDURAL`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.problems.gym import GymTask
from sppo_lit.problems.prompts import BOXED_SUFFIX
from sppo_lit.rewards.gym import check_task
from sppo_lit.types import Problem

GYM = "reasoning_gym/"


class ProceduralTask(Protocol):
    """Generates problems."""

    def problem(self, index: int, split: str = "train") -> Problem:
        """Problem number `index`, from 0: the same in every process; no problem of one split is in another."""


@dataclass(frozen=True)
class ProceduralSource:
    """A source of generated problems.

    Attributes:
        make: makes the task, from the path and the settings of the problem set, and from `data.arithmetic`.
        check: refuses a path and settings, before anything is imported.
        suffix: follows every problem where the user has not set another.
        shorter: what to lower for shorter prompts.
    """

    make: Callable[[str, dict[str, Any], ArithmeticTask], ProceduralTask]
    check: Callable[[str, dict[str, Any]], None]
    suffix: str
    shorter: str


def _no_settings(_: str, settings: dict[str, Any]) -> None:
    if settings:
        raise InputError("arithmetic: its settings are those of data.arithmetic; move them there")


PROCEDURAL = {
    "arithmetic": ProceduralSource(
        make=lambda _, __, arithmetic: arithmetic,
        check=_no_settings,
        suffix="",
        shorter="data.arithmetic.max_operations",
    ),
    GYM: ProceduralSource(
        make=lambda path, settings, _: GymTask(path.removeprefix(GYM), settings),
        check=lambda path, _: check_task(path.removeprefix(GYM)),
        suffix=BOXED_SUFFIX,
        shorter="the difficulty in data.train.settings",
    ),
}
"""Sources by path; one that ends in ``/`` has several tasks, whose names follow."""


def procedural(path: str) -> ProceduralSource | None:
    """The generated source that a path names; None for all other paths."""
    family, slash, _ = path.partition("/")
    return PROCEDURAL.get(family + slash)
