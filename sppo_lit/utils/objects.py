"""Import of custom objects named in a recipe: a reward, verifier, algorithm, engine or source of problems."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from sppo_lit.errors import InputError

FORMS = "package.module.name, package.module:name or path/to/file.py:name"


def names_object(spec: str) -> bool:
    """Whether `spec` has the form of an object's name (see `FORMS`); a plain word does not."""
    place, _, name = spec.rpartition(":")
    if place:
        return name.isidentifier()
    return "." in spec and all(part.isidentifier() for part in spec.split("."))


def check_object(spec: str, what: str) -> None:
    """Refuse what cannot be the name of an object, without importing anything.

    Args:
        spec: see `FORMS`.
        what: the setting that holds it, for the message.

    Raises:
        InputError: `spec` does not have this form, or the file does not exist.
    """
    if not names_object(spec):
        raise InputError(f"{what} {spec!r}: give {FORMS}")
    place = spec.rpartition(":")[0]
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise InputError(f"{what} {spec!r}: no file {place}; give path/to/file.py:name")


def load_object(spec: str, what: str, kind: str = "object") -> Any:
    """Import the object that `spec` names.

    Args:
        spec: see `FORMS`.
        what: the setting that holds it, for the message.
        kind: kind of object expected, for the message.

    Raises:
        InputError: the file, the module or the object does not exist, or importing it fails.
    """
    check_object(spec, what)
    place, _, name = spec.rpartition(":") if ":" in spec else spec.rpartition(".")
    try:
        module = _import_file(Path(place).expanduser()) if place.endswith(".py") else _import_module(place)
    except Exception as error:
        raise InputError(f"{what} {spec!r}: importing {place} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise InputError(f"{what} {spec!r}: {place} has no {kind} {name}")
    return getattr(module, name)


def load_function(spec: str, what: str, takes: Sequence[str] | None = None) -> Callable[..., Any]:
    """As `load_object`, for something that can be called.

    Args:
        spec: see `FORMS`.
        what: the setting that holds it, for the message.
        takes: names of the positional arguments that it is called with; None where they do not matter.

    Raises:
        InputError: as `load_object`, or the object cannot be called, or not with these arguments.
    """
    function = load_object(spec, what, kind="function")
    if not callable(function):
        raise InputError(f"{what} {spec!r}: of type {type(function).__name__}, not a function or a class")
    if takes is not None:
        with suppress(ValueError):  # some callables written in C have no signature
            signature = inspect.signature(function)
            if not _accepts(signature, len(takes)):
                raise InputError(
                    f"{what} {spec!r}: its parameters are {signature}, but it is called with ({', '.join(takes)})"
                )
    return function  # type: ignore[no-any-return]


def _accepts(signature: inspect.Signature, arguments: int) -> bool:
    """Whether something may be called with so many positional arguments."""
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def _import_module(name: str) -> ModuleType:
    # A console script's import path lacks the working directory, unlike that of the verifier's workers.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sppo_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
