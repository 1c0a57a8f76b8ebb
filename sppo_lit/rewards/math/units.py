"""Units, percent signs and currency around a quantity. Input is normalized text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_CURRENCY = {r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SYNONYMS = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "millimeter": "mm", "millimetre": "mm", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "gram": "g", "kilogram": "kg",
    "liter": "l", "litre": "l", "milliliter": "ml", "dollar": "dollar", "usd": "dollar", "degree": "°", "deg": "°",
    "lb": "pound", "unit": "", "sq": "square", "cubed": "cubic", "squared": "square", "radian": "", "rad": "",
    "kelvin": "k", "kph": "km/h", "mph": "mi/h", "joule": "j", "watt": "w", "newton": "n", "hertz": "hz", "volt": "v",
    "cent": "cent", "per": "/",
}  # fmt: skip
_WORDS = set(_SYNONYMS) | set(_SCALES) | {"cm", "km", "mm", "kg", "mi", "ft", "in", "mg", "ml", "min", "percent", "pm"}
_PIECE = r"(?:\\text ?\{[^{}]*\}(?:\^\{?-?\d\}?)?|\\cdot|/|%|\\%|°[CF]?)"
_NO_UNIT = re.compile(
    r"\b(?:no|not|isn|is|are|or|and|if|than|more|less|least|most|but|except|unless|plus|minus|times|over|wrong|incorrect|"
    r"maybe|below|negative|either|neither|nor|between|to|through|up)\b", re.IGNORECASE
)  # fmt: skip
_TAIL = re.compile(rf"(?<![\\^_{{])(?: ?{_PIECE}){{1,12}} ?\.?$")
_BARE_WORDS = re.compile(r"(?<=[\d})]) ?([a-zA-Z]{2,}(?:[ /][a-zA-Z]{2,}){0,5}\.?)(\^\{?\d\}?)?$")
_ANGLE_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")


@dataclass(frozen=True)
class Quantity:
    """A quantity in parts.

    Attributes:
        core: the magnitude as text.
        unit: canonical unit or currency; empty if there is none.
        percent: whether there was a percent sign.
        scale: multiplier given as a word, e.g. ``million``.
    """

    core: str
    unit: str = ""
    percent: bool = False
    scale: Fraction = Fraction(1)


def _canonical(raw: str) -> tuple[str, bool, int]:
    """Canonical unit, whether it contains a percent sign, and multiplier of a unit's text."""
    percent, scale, words = False, 1, []
    raw = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", raw)
    raw = re.sub(r"\^\{(-?\d)\}", r"^\1", raw)
    raw = re.sub(r"\\text ?|[{}.()]|\\cdot", " ", raw.replace("\\%", "%")).replace("/", " / ").lower()
    for word in re.findall(r"%|°|/|\^-?\d|[^\W\d_]+", raw):
        stem = word if word in _WORDS else word.rstrip("s") if len(word) > 2 else word
        if word == "%" or stem in ("percent", "percentage", "pct"):
            percent = True
        elif stem in _SCALES:
            scale *= _SCALES[stem]
        elif stem not in ("of", "the", "a", "an"):
            words.append(_SYNONYMS.get(stem, stem))
    for name, power in (("square", "^2"), ("cubic", "^3")):
        if name in words:
            words.remove(name)
            words.append(power)
    return " ".join(w for w in words if w), percent, scale


def split_quantity(s: str) -> Quantity:
    r"""Split `s` into magnitude, unit, percent sign and multiplier word (``2.5 \text{ million}``)."""
    unit = ""
    for sign, name in _CURRENCY.items():
        if sign in s[:3]:
            s = s.replace(sign, "", 1).strip()
            unit = name
            break
    if not s or (s[-1] in "0123456789" and not any(c.isalpha() for c in s)):
        return Quantity(s, unit)
    m = _TAIL.search(s)
    if m is None and (words := _BARE_WORDS.search(s)):
        first = re.split(r"[ /]", words[1].lower())
        known = [w in _WORDS or w.rstrip("s") in _WORDS for w in first]
        # Letters after a number are a product of variables unless they are words.
        if (any(known) or all(len(w) >= 4 for w in first)) and "\\" not in words[0]:
            m = words
    if m is None or m.start() == 0 or ("°" in m.group() and _ANGLE_FUNCTION.search(s)):
        return Quantity(s, unit)
    if _NO_UNIT.search(m.group()):
        return Quantity(s, unit)
    name, percent, scale = _canonical(m.group())
    return Quantity(s[: m.start()].strip(), unit or name, percent, Fraction(scale))


def same_unit(x: str, y: str) -> bool:
    """Whether two units agree; a missing one agrees with any."""
    return not x or not y or x == y
