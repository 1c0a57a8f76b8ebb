"""The one exception that a user's mistake raises, and a command line that raises it."""

from __future__ import annotations

import argparse
from typing import NoReturn


class InputError(Exception):
    """Bad input from the user: shown as one line (what is wrong, where, what to do), exit code 2, no traceback."""


class CommandParser(argparse.ArgumentParser):
    """Arguments of a command such as ``sppo audit``; what it refuses is an `InputError`."""

    raw = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise InputError(f"{self.prog.rpartition(' ')[2]}: {message}; see '{self.prog} --help'")
