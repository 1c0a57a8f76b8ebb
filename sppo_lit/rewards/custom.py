"""Custom rewards: the user's functions, named by dotted path or file, run in the worker processes."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def run_reward(function: RewardFunction, response: str, gold: str) -> tuple[float, str]:
    """Value and error of a reward: a finite float and "", or 0 and what went wrong.

    Raises:
        MemoryError: from the function; so that the process, which is at its memory limit, is replaced.
    """
    try:
        value = float(function(response, gold))
    except MemoryError:
        raise
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {error}"[:300]
    return (value, "") if math.isfinite(value) else (0.0, f"returned {value}")
