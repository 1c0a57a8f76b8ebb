"""Protocols of a comparison: what algorithms with different numbers of responses to a prompt have in common.

N responses to a prompt are paid for somewhere. At equal prompts (as in the paper) an iteration of N has N times the
sequences, at equal sequences an N-th of the prompts; both take equally many optimizer steps. Greedy responses, of which
only the reward is used, are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sppo_lit.algorithms.batching import check_minibatch
from sppo_lit.algorithms.specs import algorithm
from sppo_lit.errors import InputError

PROTOCOLS = {
    "equal_prompts": "equal prompts: an iteration of each has as many problems and steps, N times the sequences",
    "equal_sequences": "equal sequences: an iteration of each has as many sequences and steps, 1/N of the problems",
}
"""Name of a protocol → what it is, for the report."""

PROBLEMS = "data.problems_per_epoch"
MINIBATCH = "model.batch.minibatch_size"
SAMPLES = "model.batch.samples_per_prompt"
ALGORITHM = "model.algorithm"


class Size(NamedTuple):
    """Size of an iteration.

    Attributes:
        problems: number of problems.
        samples: N, responses to each.
        minibatch: sequences of one optimizer step.
    """

    problems: int
    samples: int
    minibatch: int


def size_of(recipe: Mapping[str, Any], *flags: Mapping[str, Any]) -> Size:
    """Size of an iteration of a recipe with some flags.

    Args:
        recipe: content of the recipe.
        flags: by dotted key; later ones override earlier ones.

    Raises:
        InputError: nothing sets the problems or the minibatch, or the algorithm is unknown.
    """
    model = recipe.get("model")
    content = {**recipe, "model": model.get("init_args", model) if isinstance(model, Mapping) else {}}

    def setting(key: str) -> Any:
        return next((value for level in (*reversed(flags), content) if (value := lookup(level, key)) is not None), None)

    for key in (PROBLEMS, MINIBATCH):
        if type(setting(key)) is not int:
            raise InputError(f"protocol: {key} is {setting(key)!r}; set it to an integer in the recipe or in common")
    samples = setting(SAMPLES) or algorithm(str(setting(ALGORITHM) or "sppo")).samples_per_prompt
    return Size(setting(PROBLEMS), samples, setting(MINIBATCH))


def adapted(protocol: str, base: Size, samples: int) -> Size:
    """Size of an iteration of an algorithm with another number of responses to a prompt.

    Args:
        protocol: a name in `PROTOCOLS`.
        base: size that the recipe sets.
        samples: N of the algorithm.

    Raises:
        InputError: a number does not divide another.
    """
    if protocol == "equal_prompts":
        minibatch, rest = divmod(base.minibatch * samples, base.samples)
        if rest:
            raise InputError(
                f"equal prompts: {MINIBATCH} {base.minibatch} × {samples} cannot be divided by the recipe's "
                f"{base.samples} responses to a prompt; set another {SAMPLES} or, in common, another {MINIBATCH}"
            )
        size = Size(base.problems, samples, minibatch)
    else:
        problems, rest = divmod(base.problems * base.samples, samples)
        if rest:
            raise InputError(
                f"equal sequences: the {base.problems * base.samples} sequences of an iteration cannot be divided by "
                f"{samples} responses to a prompt; set another {SAMPLES} or, in common, another {PROBLEMS}"
            )
        size = Size(problems, samples, base.minibatch)
    check_minibatch(*size)
    return size


def size_flags(
    protocol: str, recipe: Mapping[str, Any], common: Mapping[str, Any], cell: Mapping[str, Any]
) -> dict[str, int]:
    """Flags that a protocol sets for a cell.

    Args:
        protocol: a name in `PROTOCOLS`.
        recipe: content of the recipe.
        common: flags of every cell.
        cell: flags of the cell.

    Raises:
        InputError: the cell sets one of them itself, or it cannot have that size.
    """
    for key in (PROBLEMS, MINIBATCH):
        if lookup(cell, key) is not None:
            raise InputError(f"{key} is set by the study (from protocol); remove it, or remove protocol")
    size = adapted(protocol, size_of(recipe, common), size_of(recipe, common, cell).samples)
    return {PROBLEMS: size.problems, MINIBATCH: size.minibatch}


def lookup(settings: Mapping[str, Any], key: str) -> Any:
    """Value of a dotted key in settings whose keys may be dotted and whose values may be nested; None without."""
    for own, value in settings.items():
        if own == key:
            return value
        if key.startswith(f"{own}.") and isinstance(value, Mapping):
            found = lookup(value, key.removeprefix(f"{own}."))
            if found is not None:
                return found
    return None
