"""Exceptions that end a run early: a user's mistake, or a signal."""

from __future__ import annotations

USE_ITS_RECIPE = "use the recipe it was trained with: config.yaml in its run folder"
"""What to do where a checkpoint does not fit."""


class InputError(Exception):
    """Bad input from the user: shown as one line (what is wrong, where, what to do), exit code 2, no traceback."""


class SharedError(InputError):
    """An `InputError` that every rank raises at once; rank zero prints it."""


class Stopped(BaseException):
    """A signal asked the run to stop, and all ranks have stopped at the same point.

    Attributes:
        signum: the signal; the exit code is 128 + signum, as in a shell.
        line: message to print; empty if the run has already printed where it stopped.
    """

    def __init__(self, signum: int, line: str = "") -> None:
        super().__init__(signum)
        self.signum, self.line = signum, line


def refuse(where: str, **checks: tuple[object, bool, str]) -> None:
    """Check settings, each given as its value, whether it is valid, and what it must be.

    Args:
        where: the group of settings, as in a recipe.
        **checks: by name of the setting.

    Raises:
        InputError: the first one that is not valid.
    """
    for key, (value, valid, requirement) in checks.items():
        if not valid:
            raise InputError(f"{where}: {key} is {value}; it must be {requirement}")
