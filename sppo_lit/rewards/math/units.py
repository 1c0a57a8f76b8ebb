"""Units, percent signs and currency around a quantity. Input is normalized text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_CURRENCY = {r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_PREFIXES = {"kilo": "k", "centi": "c", "milli": "m", "mega": "M", "micro": "µ", "nano": "n", "giga": "G", "deci": "d"}
_PREFIXED = {
    "meter": "m", "metre": "m", "gram": "g", "liter": "L", "litre": "L", "joule": "J", "watt": "W", "newton": "N",
    "hertz": "Hz", "volt": "V", "pascal": "Pa", "ampere": "A", "amp": "A", "ohm": "Ω", "coulomb": "C", "farad": "F",
    "tesla": "T", "mole": "mol", "kelvin": "K", "calorie": "cal", "electronvolt": "eV", "second": "s",
}  # fmt: skip
_WORDS = {
    **_PREFIXED,
    **{prefix + word: short + symbol for prefix, short in _PREFIXES.items() for word, symbol in _PREFIXED.items()},
    "kilohm": "kΩ",
    "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "sec": "s", "minute": "min",
    "hour": "h", "hr": "h", "day": "day", "week": "week", "wk": "week", "month": "month", "year": "year",
    "yr": "year", "dollar": "dollar", "usd": "dollar", "buck": "dollar", "cent": "cent", "euro": "euro",
    "eur": "euro", "gbp": "pound", "yuan": "yuan", "yen": "yen", "rupee": "rupee", "degree": "°", "deg": "°",
    "celsius": "°C", "fahrenheit": "°F", "lb": "pound", "pound": "pound", "ounce": "oz", "ton": "ton",
    "tonne": "tonne", "radian": "rad", "acre": "acre", "hectare": "ha", "gallon": "gal", "quart": "qt",
    "pint": "pint", "cup": "cup", "mph": "mi/h", "kph": "km/h", "kmh": "km/h", "unit": "", "am": "am", "pm": "pm",
    "lightyear": "ly",
}  # fmt: skip
_SYMBOLS = {
    *(p + b for p in ("", "n", "µ", "m", "c", "d", "k", "M", "G", "T", "p")
      for b in ("m", "g", "s", "A", "K", "mol", "L", "N", "J", "W", "V", "Hz", "Pa", "C", "F", "Ω", "T", "eV", "cal",
                "bar", "Wh", "H", "S", "B")),
    "min", "h", "d", "oz", "ft", "in", "yd", "mi", "rpm", "atm", "ha", "gal", "qt", "°", "°C", "°F", "rad", "erg",
    "M", "u", "AU", "ly", "pc", "cd", "mmHg", "psi", "Torr", "dyn",
}  # fmt: skip
_SLOPPY = (
    "kg", "km", "cm", "Hz", "kHz", "kPa", "kJ", "kW", "kWh", "mol", "min", "ft", "in", "oz", "mi", "yd", "atm", "rpm",
)  # fmt: skip
_FOLDED = {symbol.casefold(): symbol for symbol in _SLOPPY} | {"l": "L", "ml": "mL", "cl": "cL", "dl": "dL"}
"""Symbols that are written in any case, since no other symbol is meant: not mw, which may be mW or MW."""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_TEXT = r"\\text ?\{[^{}]*\}(?:\^-?\d)?"
_PIECE = (
    rf"(?:{_TEXT}|\\frac ?\{{ ?{_TEXT} ?\}} ?\{{ ?{_TEXT} ?\}}"
    r"|\\cdot(?= ?\\text)|/(?= ?\\text)|\\?%|°[CF]?|\\mu(?= ?\\text)|\\Omega)"
)
_TAIL = re.compile(rf"(?<![\\^_{{+*/-])(?: ?{_PIECE}){{1,12}} ?\.?$")
_BARE_WORDS = re.compile(r"(?<=[\d})]) ?([a-zA-Z]{2,}(?:[ /][a-zA-Z]{2,}){0,5}|[ckm]?m/(?:s|h|min))\.?(\^\{?-?\d\}?)?$")
_TOKEN = re.compile(
    r"\\text ?|\\cdot|\\frac|\\mu|\\Omega|\\?%|°[CF]?|/|\^-?\d|[^\W\d_]+|[{}(). \-]|(?P<other>.)", re.DOTALL
)
_ANGLE_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_COMPOUND = re.compile(r"(?: *\d+(?:\.\d+)? *(?:[A-Za-z]+|'{1,2}) *){2,4}", re.ASCII)

_IRREGULAR = {
    "people", "children", "men", "women", "mice", "fish", "sheep", "deer", "teeth", "geese", "dice", "cattle",
}  # fmt: skip
_NO_NOUN = {
    "perhaps", "always", "sometimes", "plus", "minus", "times", "yes", "has", "was", "does", "as", "its", "ours",
    "theirs", "others", "otherwise", "likewise", "besides", "unless", "halves", "quarters", "ones", "twos",
    "threes", "fours", "fives", "sixes", "sevens", "eights", "nines", "tens", "hundreds", "thousands", "millions",
    "billions", "dozens", "fails", "differs", "depends", "equals", "exceeds", "means", "needs", "seems", "looks",
    "works", "remains", "varies", "lies", "wins", "loses", "contradicts", "disagrees", "doubts", "says", "holds",
    "goes", "becomes", "makes", "gives", "errs", "alternatives", "options", "guesses", "possibilities", "errors",
    "mistakes", "wrongs", "falsehoods", "nots", "answers", "values", "solutions", "choices", "nos", "lots", "whereas",
    "afterwards", "maybes",
    "mais", "jamais", "sans", "moins", "puis", "alors", "pas", "dans", "quizas", "menos", "mas", "entonces", "tres",
    "seis", "dos", "depois", "dois", "duas", "sonst", "eins", "sechs", "etwas", "falls", "anders", "nichts",
}  # fmt: skip
"""Words that end as plurals do and are none: adverbs, verbs, numbers, in the languages that models answer in."""


@dataclass(frozen=True)
class Quantity:
    """A quantity in parts.

    Attributes:
        core: the magnitude as text.
        unit: canonical unit or currency; empty if there is none.
        percent: whether there was a percent sign.
        scale: multiplier given as a word, e.g. ``million``.
        free: whether the unit is free text: neither made of known units nor a single noun in the plural.
    """

    core: str
    unit: str = ""
    percent: bool = False
    scale: Fraction = Fraction(1)
    free: bool = False


def _is_noun(word: str) -> bool:
    """Whether an unknown word can be what is counted: a plural, in letters."""
    word = word.casefold()
    if word in _IRREGULAR:
        return True
    odd = re.search(r"(?:[uis]s|ous|less|th|ths|thirds|wards|ways)$", word)
    return word.isascii() and len(word) > 3 and word.endswith("s") and word not in _NO_NOUN and not odd


def _known(word: str) -> str | None:
    """The canonical symbol of a unit; None if it is not known. Symbols tell case (mJ, MJ), words do not."""
    if word in _SYMBOLS:
        return word
    low = word.casefold()
    for form in (low, low.removesuffix("s")):
        if form in _WORDS:
            return _WORDS[form]
    return _FOLDED.get(low)


def _canonical(raw: str) -> Quantity:
    """Unit, percent sign, multiplier and whether it is free text, of a unit's text; the core is left empty."""
    percent, scale, free, sign, raised, lifted, found = False, 1, False, 1, 0, 0, 0
    group = 1
    powers: Counter[str] = Counter()
    words: list[str] = []
    last: list[str] = []
    raw = re.sub(r"\^\{(-?\d)\}", r"^\1", raw)
    raw = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", raw)
    raw = re.sub(r"\bper ?cent(?:age)?(?: points?)?\b|\bpercent(?:age)?(?: points?)?\b|\bpct\b", "%", raw)
    raw = re.sub(r"\bdegrees? (?=celsius|fahrenheit)", "", raw, flags=re.IGNORECASE)
    raw = re.sub(r"° ?\\text ?\{ ?([CF]) ?\}", r"°\1", raw)
    raw = re.sub(r"\\mu ?\\text ?\{ ?|\\mu ?", "µ", raw)
    raw = re.sub(r"(\\text ?\{ ?[a-zA-Z]? ?\}) ?\\Omega|\\Omega", lambda m: (m[1] or "")[:-1] + "Ω", raw)
    raw = re.sub(r"\\frac ?\{(.*?\}(?:\^-?\d)?) ?\} ?\{(.*)\}", r"\1/\2", raw)
    for m in _TOKEN.finditer(raw):
        word = m.group()
        low = word.casefold()
        if m["other"]:
            free = True
        elif word in "()":  # "J/(kg K)"
            group, sign = (sign, sign) if word == "(" else (1, 1)
        elif low in ("of", "the", "old"):
            free = free or not found
        elif not word[0].isalpha() and "%" not in word and word[0] not in "/^°":
            continue
        elif "%" in word:
            percent, free = True, free or percent
        elif low in ("/", "per"):
            sign = -1
            words.append("/")
        elif word[0] == "^" or low in ("squared", "cubed"):
            power = int(word[1:]) if word[0] == "^" else _POWERS[low]
            for part in last:
                powers[part] += (power - 1) * (1 if powers[part] > 0 else -1)
            lifted += 1
            free = free or not found or lifted > 1
            words.append(f"^{power}")
        elif low in _POWERS:
            raised = _POWERS[low]
        elif low in _SCALES and not found:
            scale *= _SCALES[low]
        elif (unit := _known(word)) is not None:
            parts = unit.split("/") if unit else []
            for part, direction in zip(parts, (1, -1), strict=False):
                powers[part] += sign * direction * (raised or 1)
            last, sign, lifted, raised, found = parts, group, int(raised > 0), 0, found + 1
            words.append(unit)
        else:
            words.append(low.removesuffix("s"))
            free, found, last, sign = free or found > 0 or not _is_noun(word), found + 1, [low], 1
            lifted = 0
            powers["?"] = 1
    if sign < 0 or raised or (powers and not any(powers.values())):
        free = True
    if powers.pop("?", 0) or free:
        free = free or len(words) > 1
        return Quantity("", " ".join(["?", *words]), percent, Fraction(scale), free)
    return Quantity("", " ".join(f"{u}^{p}" for u, p in sorted(powers.items()) if p), percent, Fraction(scale))


@lru_cache(maxsize=1024)
def split_quantity(s: str) -> Quantity:
    r"""Split `s` into magnitude, unit, percent sign and multiplier word (``2.5 \text{ million}``)."""
    currency = ""
    for sign, name in _CURRENCY.items():
        if sign in s[:3]:
            s = s.replace(sign, "", 1).strip()
            currency = f"{name}^1"
            break
    if not s or (s[-1] in "0123456789" and not any(c.isalpha() for c in s)):
        return Quantity(s, currency)
    if s[-1] == "'" and (m := re.fullmatch(r"(.*\d) ?('{1,2})", s)):
        return Quantity(m[1], "in^1" if len(m[2]) == 2 else "ft^1", free=True)  # may be a derivative: the gold decides
    if "text" in s:
        s = re.sub(r"\^\{(-?\d)\}", r"^\1", s)
    m = _TAIL.search(s)
    if m is None and (words := _BARE_WORDS.search(s)):
        # Letters after a number are a product of variables unless they are words.
        parts = re.split(r"[ /]", words[1])
        if (
            any(_known(w) is not None or w.casefold() in _SCALES for w in parts)
            or (len(parts) == 1 and _is_noun(parts[0]))
            or words[1].casefold() in ("percent", "pct", "percentage", "per cent")
        ):
            m = words
    if m is None or m.start() == 0 or ("°" in m.group() and _ANGLE_FUNCTION.search(s)):
        return Quantity(s, currency)
    unit = _canonical(m.group())
    name = unit.unit if not currency or unit.unit == currency else f"{currency} {unit.unit}".strip()
    return Quantity(s[: m.start()].strip(), name, unit.percent, unit.scale, unit.free)


def same_unit(gold: Quantity, answer: Quantity) -> bool:
    """Whether two units agree; a missing one agrees with any that is known, or with what is counted.

    Free text agrees only with itself: "5 perhaps six" is not an answer in a unit that the gold answer left out.
    """
    if gold.percent != answer.percent and (gold.unit or answer.unit):
        return False
    if gold.unit and answer.unit:
        return gold.unit == answer.unit
    return not answer.free


def compound(s: str) -> list[tuple[Fraction, str]] | None:
    """The parts of ``5 hours 30 minutes``: at least two numbers, each with a known unit of its own; else None."""
    if not s or s[0] not in "0123456789":
        return None
    plain = re.sub(r"\\text|[{},]", " ", s)
    if not _COMPOUND.fullmatch(plain):
        return None
    pairs = re.findall(r"(\d+(?:\.\d+)?) *([A-Za-z]+|'{1,2})", plain)
    parts = [(Fraction(n), {"'": "ft", "''": "in"}.get(u) or _known(u) or "") for n, u in pairs]
    units = [unit for _, unit in parts]
    return parts if all(units) and len(set(units)) == len(units) else None
