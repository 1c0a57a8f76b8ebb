"""Numbers as exact fractions: the cheap paths that most answers take."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 2000
_CLEAN = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\$|~|\\displaystyle")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d*)?")
_FRACTION = re.compile(r"([+-]?)\\?[dt]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}|([+-]?)(\d+)/(\d+)")


def clean(text: str) -> str:
    """`text` without spacing commands, dollars and outer blanks."""
    return _CLEAN.sub("", text.replace("−", "-")).strip().rstrip(".").strip()


def parse_number(text: str) -> Fraction | None:
    """The exact value of a number in plain or LaTeX notation; None if it is anything else."""
    s = text.replace(" ", "")
    if len(s) > MAX_CHARS:
        return None
    if _GROUPED.fullmatch(s):
        s = s.replace("{,}", "").replace(",", "")
    if _NUMBER.fullmatch(s):
        return Fraction(s.rstrip(".") if s.endswith(".") else s)
    if m := _FRACTION.fullmatch(s):
        sign = -1 if (m[1] or m[4]) == "-" else 1
        top, bottom = int(m[2] or m[5]), int(m[3] or m[6])
        return sign * Fraction(top, bottom) if bottom else None
    return None


def exactly_equal(gold: str, answer: str) -> bool | None:
    """Equality by string or exact arithmetic; None if neither can tell."""
    g, a = clean(gold), clean(answer)
    if not a or not g:
        return False
    if g == a:
        return True
    if len(a) > MAX_CHARS:
        return False
    x, y = parse_number(g), parse_number(a)
    return x == y if x is not None and y is not None else None
