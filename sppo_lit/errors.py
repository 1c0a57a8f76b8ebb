"""The one exception that a user's mistake raises."""


class InputError(Exception):
    """Bad input from the user: shown as one line (what is wrong, where, what to do), exit code 2, no traceback."""
