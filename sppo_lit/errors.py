"""Exceptions that end a run early: a user's mistake, or a signal."""

from __future__ import annotations


class InputError(Exception):
    """Bad input from the user: shown as one line (what is wrong, where, what to do), exit code 2, no traceback."""


class Stopped(BaseException):
    """A signal asked the run to end, and all its processes have left at the same place.

    Attributes:
        signum: the signal; the exit code is 128 more, as a shell has it.
        line: to be printed; empty if the run has said where it stopped.
    """

    def __init__(self, signum: int, line: str = "") -> None:
        super().__init__(signum)
        self.signum, self.line = signum, line
