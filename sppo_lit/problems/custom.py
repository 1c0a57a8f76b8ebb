"""Custom problem sets: the user's functions, named by dotted path or file, that return problems or rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.problems.formats import BadRow, NumberedRow
from sppo_lit.types import Problem
from sppo_lit.utils.objects import load_function

WHAT = "problem set"


def open_function(spec: str, split: str | None) -> tuple[Callable[[], Iterator[NumberedRow]], str]:
    """Import the function that `spec` names; it is called when its rows are read, each time anew.

    Args:
        spec: see `sppo_lit.utils.objects.FORMS`.
        split: handed to the function's parameter `split`; None for the parameter's default, ``train`` without one.

    Returns:
        What reads the rows, numbered from 1, and the split.

    Raises:
        InputError: the function cannot be imported, or a split is asked for and the function takes none.
    """
    function = load_function(spec, WHAT)
    parameter = _parameters(function).get("split")
    if parameter is None:
        if split is not None:
            raise InputError(
                f"{WHAT} {spec!r}: split {split!r} is asked for, but the function has no parameter 'split'"
            )
        return partial(_read, spec, function), "train"
    split = split or (parameter.default if isinstance(parameter.default, str) else "train")
    return partial(_read, spec, partial(function, split=split)), split


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        return {}


def _read(spec: str, function: Callable[[], Any]) -> Iterator[NumberedRow]:
    try:
        rows = function()
        if not isinstance(rows, Iterable):
            raise TypeError(f"returned {type(rows).__name__}, not problems or rows")
        for number, row in enumerate(rows, start=1):
            yield number, _checked(row)
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{WHAT} {spec!r}: the function failed: {reason}") from error


def _checked(row: Any) -> Mapping[str, Any] | Problem | BadRow:
    if isinstance(row, Mapping):
        return row
    if not isinstance(row, Problem):
        return BadRow("corrupt", f"of type {type(row).__name__}, neither a Problem nor a mapping")
    for text, reason, what in ((row.prompt, "no_problem", "prompt"), (row.answer, "no_answer", "answer")):
        if not isinstance(text, str) or not text.strip():
            return BadRow(reason, f"{what} {text!r} of the Problem is not a text")
    return row
