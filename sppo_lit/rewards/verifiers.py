"""Verifiers by name: those of the package, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sppo_lit.errors import InputError
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.utils.objects import FORMS, load_function, names_object

if TYPE_CHECKING:
    from sppo_lit.settings import VerifierSettings
    from sppo_lit.types import Verifier

SETTING = "model.verifier.kind"


def math_verifier(settings: VerifierSettings, functions: Sequence[str] = ()) -> VerifierPool:
    """Worker processes that compare the boxed answer with the gold answer as mathematics."""
    return VerifierPool(settings.workers, settings.deadline, settings.memory_mb, functions, settings.audit)


VERIFIERS: dict[str, Callable[[VerifierSettings, Sequence[str]], Verifier]] = {"math": math_verifier}


def make_verifier(settings: VerifierSettings, functions: Sequence[str] = ()) -> Verifier:
    """Make the verifier that `settings.kind` names.

    Args:
        settings: of the verifier. Its kind is a name in `VERIFIERS`, or names the user's own function or class, which
            is called with the arguments of this function and returns a `sppo_lit.types.Verifier`.
        functions: names of the custom rewards that `Verifier.custom` is to compute.

    Raises:
        InputError: an unknown kind, a function that cannot be imported, or settings that the verifier refuses.
    """
    make = VERIFIERS.get(settings.kind)
    if make is None:
        if not names_object(settings.kind):
            known = ", ".join(VERIFIERS)
            raise InputError(f"{SETTING} {settings.kind!r}: unknown; choose one of {known}, or name your own: {FORMS}")
        make = load_function(settings.kind, SETTING, ("settings", "functions"))
    return make(settings, functions)
