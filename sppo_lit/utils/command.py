"""Parsing the flags of a command such as ``sppo audit``."""

from __future__ import annotations

import argparse
from typing import NoReturn

from sppo_lit.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            InputError: always, with the command's name and where its help is found.
        """
        program, _, command = self.prog.rpartition(" ")
        raise InputError(f"{command}: {message}; see '{self.prog if self.add_help else program} --help'")


def names(text: str) -> list[str]:
    """The names in a flag's value, separated by commas."""
    return text.split(",")
