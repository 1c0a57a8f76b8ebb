"""Custom rewards: the user's functions, named by dotted path or file, run in the worker processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sppo_lit.types import LARGEST_REWARD
from sppo_lit.utils.objects import load_function

RewardFunction = Callable[[str, str], float]
SETTING = "model.reward.custom"
"""Where a recipe names them, for messages."""


def load_reward(spec: str) -> RewardFunction:
    """Import the function ``f(response, gold) -> float`` that `spec` names.

    Raises:
        InputError: the file, the module or the function does not exist, or importing it fails.
    """
    return load_function(spec, SETTING)


def reward_names(specs: Sequence[str]) -> dict[str, str]:
    """A short name for each reward, safe in the name of a metric: its function's, with its place where two are alike.

    Args:
        specs: as recipes name rewards.
    """
    split = {spec: spec.rpartition(":" if ":" in spec else ".") for spec in specs}
    functions = [function for _, _, function in split.values()]
    names: dict[str, str] = {}
    for spec, (place, _, function) in split.items():
        stem = re.split(r"[/.]", place.removesuffix(".py"))[-1]
        name = short = function if functions.count(function) == 1 else f"{stem}.{function}"
        number = 2
        while name in names.values():
            name, number = f"{short}_{number}", number + 1
        names[spec] = re.sub(r"[^\w.-]+", "_", name)
    return names


def run_reward(function: RewardFunction, response: str, gold: str) -> tuple[float, str]:
    """Value and error of a reward: a number of at most `LARGEST_REWARD` in size and "", or 0 and what went wrong.

    Raises:
        MemoryError: from the function; so that the process, which is at its memory limit, is replaced.
    """
    try:
        result = function(response, gold)
        value = float("nan") if isinstance(result, (str, bytes)) else float(result)  # "1" is a mistake, too
    except MemoryError:
        raise
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {error}"[:300]
    if -LARGEST_REWARD <= value <= LARGEST_REWARD:  # not so of nan
        return value, ""
    return 0.0, f"returned {result!r}, not a number from -{LARGEST_REWARD:g} to {LARGEST_REWARD:g}"[:300]
