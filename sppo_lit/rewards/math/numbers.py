"""Numbers in exact arithmetic, which decides most answers cheaply. Input is normalized text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000
_DEC = r"\d+(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"([+-]?)({_DEC})(?:[eE]([+-]?\d{{1,3}}))?", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_POWER = re.compile(rf"([+-]?)(?:({_DEC}) ?\\cdot ?)?10 ?\^ ?\{{?([+-]?\d{{1,3}})\}}?", re.ASCII)
_FRAC = re.compile(
    rf"([+-]?)(\d*) ?\\frac ?\{{([+-]?(?:{_DEC}))\}} ?\{{([+-]?(?:{_DEC}))\}}"
    rf"|([+-]?)(?:(\d+) )?\(?((?:{_DEC}))\)?/\(?([+-]?(?:{_DEC}))\)?",
    re.ASCII,
)
_REPEAT = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar|dot) ?\{?(\d+)\}?", re.ASCII)
_BASE = re.compile(r"([+-]?)(?:\\text ?\{ ?)?\(?([0-9A-Za-z]+)\)? ?\}? ?_ ?\{?(\d{1,2})\}?", re.ASCII)

_SHOWN = re.compile(r"[+-]?(\d*)(?:\.(\d*))?(?: ?\\cdot ?10 ?\^ ?\{?([+-]?\d{1,3})\}?|[eE]([+-]?\d{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class Number:
    """An exact value; `ulp` is one unit in the last place if it was written as a non-integer decimal, else 0."""

    value: Fraction
    ulp: Fraction = Fraction(0)

    def scaled(self, factor: Fraction) -> Number:
        """This number times a positive `factor`."""
        return Number(self.value * factor, self.ulp * factor)


def _decimal(sign: str, digits: str, exponent: int = 0) -> Number:
    scale = Fraction(10) ** exponent
    value = Fraction(digits.rstrip(".") or "0") * scale * (-1 if sign == "-" else 1)
    places = len(digits.partition(".")[2])
    inexact = (places or exponent) and value.denominator != 1
    return Number(value, Fraction(1, 10**places) * scale if inexact else Fraction(0))


def parse_number(s: str) -> Number | None:
    """Parse a number; None if `s` is anything else.

    Forms: integer, decimal, thousands separators, scientific notation, proper, improper or mixed fraction, repeating
    decimal.
    """
    if not s or len(s) > MAX_DIGITS or not any(c.isdigit() for c in s[:20]):
        return None
    if _GROUPED.fullmatch(s):
        s = s.replace(",", "")
    if m := _PLAIN.fullmatch(s):
        return _decimal(m[1], m[2], int(m[3] or 0))
    if m := _POWER.fullmatch(s):
        return _decimal(m[1], m[2] or "1", int(m[3]))
    if m := _FRAC.fullmatch(s):
        sign, whole, top, bottom = (m[1], m[2], m[3], m[4]) if m[3] else (m[5], m[6], m[7], m[8])
        upper, lower = Fraction(top.rstrip(".")), Fraction(bottom.rstrip("."))
        if lower == 0 or (whole and not 0 <= upper < lower):
            return None
        value = upper / lower + (int(whole) if whole else 0)
        return Number(-value if sign == "-" else value)
    if m := _REPEAT.fullmatch(s):
        head, tail, cycle = m[2] or "0", m[3], m[4]
        nines = 10 ** len(cycle) - 1
        value = Fraction(f"{head}.{tail}" if tail else head) + Fraction(int(cycle), nines * 10 ** len(tail))
        return Number(-value if m[1] == "-" else value)
    return None


def parse_base(s: str) -> tuple[str, int] | None:
    """Digits and base of a number such as ``52_8`` or ``A3_{16}``, else None (``x_1``, ``5_{100}``, ``9_8``)."""
    if s.startswith("(") and s.endswith(")") and ")" not in s[:-1]:
        s = s[1:-1]
    if "_" not in s or (m := _BASE.fullmatch(s)) is None:
        return None
    digits, base = m[2].upper(), int(m[3])
    if not 2 <= base <= 36 or not any(c.isdigit() for c in digits) or any(int(c, 36) >= base for c in digits):
        return None
    return m[1].replace("+", "") + (digits.lstrip("0") or "0"), base


def rounds_to(value: Fraction, shown: Number, text: str) -> bool:
    """Whether `shown`, written as `text`, is a rounding or truncation of `value` to the digits it shows.

    Zeros at the end of an integer do not count as digits if no more than half a per cent is lost (22 is not 20); a
    fraction is not rounded.
    """
    m = _SHOWN.fullmatch(text)
    if m is None:
        return value == shown.value
    whole, places, exponent = m[1], m[2] or "", int(m[3] or m[4] or 0)
    zeros = 0 if places or exponent else len(whole) - len(whole.rstrip("0"))
    unit = Fraction(10) ** (zeros + exponent - len(places))
    gap = abs(value - shown.value)
    if zeros and gap * 200 > abs(value):
        return False
    truncated = bool(places) and abs(shown.value) <= abs(value)
    return gap < unit if truncated else gap * 2 <= unit


def same_number(x: Number, y: Number, tolerance: Fraction = Fraction(1, 10**4)) -> bool:
    """Whether two numbers are equal, or one is a rounding or truncation of the other.

    Decimals that are not integers count as rounded: they may differ by less than one unit in the last place of the
    coarser, if it has four significant digits, and by no more than `tolerance` of the value. Integers and exact
    fractions must be equal.
    """
    if x.value == y.value:
        return True
    ulp = max(x.ulp, y.ulp)
    if ulp == 0 or x.value.denominator == 1 or y.value.denominator == 1:
        return False
    gap, coarser = abs(x.value - y.value), x if x.ulp == ulp else y
    return abs(coarser.value) >= 1000 * ulp and gap < ulp and gap <= tolerance * max(abs(x.value), abs(y.value))
