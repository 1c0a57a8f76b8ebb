"""Exceptions that end a run early: a user's mistake, or a signal."""

from __future__ import annotations


class InputError(Exception):
    """Bad input from the user: shown as one line (what is wrong, where, what to do), exit code 2, no traceback."""


class Stopped(BaseException):
    """A signal asked the run to stop, and all ranks have stopped at the same point.

    Attributes:
        signum: the signal; the exit code is 128 + signum, as in a shell.
        line: message to print; empty if the run has already printed where it stopped.
    """

    def __init__(self, signum: int, line: str = "") -> None:
        super().__init__(signum)
        self.signum, self.line = signum, line
