"""Rewards of the user's own: functions named by dotted path or file, run in the worker processes."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from sppo_lit.errors import InputError

RewardFunction = Callable[[str, str], float]
ANSWER = "answer"


def check_spec(spec: str) -> None:
    """Raise InputError unless `spec` names a reward: ``answer``, ``module:function`` or ``file.py:function``."""
    place, _, name = spec.rpartition(":")
    if spec == ANSWER or (place and name.isidentifier()):
        if place.endswith(".py") and not Path(place).is_file():
            raise InputError(f"reward {spec!r}: no file {place}; give path/to/file.py:function")
        return
    if "." in spec and all(part.isidentifier() for part in spec.split(".")):
        return
    raise InputError(
        f"reward {spec!r}: give package.module.function, package.module:function or path/to/file.py:function"
    )


def load_reward(spec: str) -> RewardFunction:
    """The function ``f(response, gold) -> float`` that `spec` names.

    Raises:
        InputError: the file, the module or the function does not exist, or importing it fails.
    """
    check_spec(spec)
    place, _, name = spec.rpartition(":") if ":" in spec else spec.rpartition(".")
    try:
        if place.endswith(".py"):
            module_spec = importlib.util.spec_from_file_location(f"sppo_reward_{Path(place).stem}", place)
            assert module_spec is not None and module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:
        raise InputError(f"reward {spec!r}: importing {place} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"reward {spec!r}: {place} has no function {name}")
    return function  # type: ignore[no-any-return]


def run_reward(function: RewardFunction, response: str, gold: str) -> tuple[float, str]:
    """(value, error): the reward as a finite float, or 0 with what went wrong."""
    try:
        value = float(function(response, gold))
    except MemoryError:
        raise
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {error}"[:300]
    return (value, "") if math.isfinite(value) else (0.0, f"returned {value}")


def weigh(weights: Mapping[str, float], correct: float, values: Mapping[str, float]) -> float:
    """Weighted sum of the verdict (under the name ``answer``) and the custom rewards."""
    return sum(w * (correct if spec == ANSWER else values.get(spec, 0.0)) for spec, w in weights.items())
