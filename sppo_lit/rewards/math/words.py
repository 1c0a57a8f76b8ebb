"""Numbers written in words, and answers that are words."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_VALUES = {word: i for i, word in enumerate(_SMALL)}
_TENS = {
    w: 10 * i for i, w in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {
    word: n
    for n, words in enumerate(
        ["half halves", "third thirds", "quarter quarters fourth fourths", "fifth fifths", "sixth sixths",
         "seventh sevenths", "eighth eighths", "ninth ninths", "tenth tenths"], 2)
    for word in words.split()
}  # fmt: skip
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_LETTERS = re.compile(r"-?[A-Za-z]+(?:[ -][A-Za-z]+)*\.?")
_NOT_IN_WORDS = re.compile(r"[\\+=*^_<>/|,;{}\[\]!?\"#$%&@~]|(?<![^\W\d_])['’-]|['’-](?!\w)")
_KEPT = {"yes", "no", "odd", "all", "none"}


def number_in_words(text: str) -> str:
    r"""The number that raw `text` spells out, as digits (``\text{twenty-one}``: 21, ``one half``: 1/2); else empty."""
    sign = "-" if text.startswith("-") else ""
    m = _TEXT.fullmatch(text.removeprefix("-"))
    bare = sign + m[1].strip() if m else text.strip()
    if len(bare) > 100 or not _LETTERS.fullmatch(bare):
        return ""
    words = re.split(r"[ -]+", bare.rstrip(".").casefold().lstrip("-"))
    negative = bare.startswith("-") or words[0] in ("negative", "minus")
    if words[0] in ("negative", "minus"):
        words = words[1:]
    value = _fraction(words)
    if value is None:
        return ""
    return f"{'-' if negative else ''}{value}"


def _fraction(words: list[str]) -> Fraction | None:
    if words and words[-1] in _PARTS:
        whole = Fraction(0)
        if "and" in words[1:-1]:
            split = words.index("and")
            number, words = _cardinal(words[:split]), words[split + 1 :]
            if number is None:
                return None
            whole = Fraction(number)
        count = 1 if words[:-1] in ([], ["a"], ["an"]) else _cardinal(words[:-1])
        if count is None or (len(words) == 1 and words[0] != "half"):
            return None
        return whole + Fraction(count, _PARTS[words[-1]])
    number = _cardinal(words)
    return None if number is None else Fraction(number)


def _cardinal(words: list[str]) -> int | None:
    """The value of a well-formed cardinal; None for anything else, such as digits read out one by one."""
    total, group, limit, ceiling = 0, 0, 10**3, 10**12
    if words == ["zero"]:
        return 0
    for i, word in enumerate(words):
        if word == "and" and 0 < i < len(words) - 1 and group % 100 == 0:
            continue
        if word in _VALUES and 0 < _VALUES[word] < limit and (limit > 10 or _VALUES[word] < 10):
            group, limit = group + _VALUES[word], 0
        elif word in _TENS and limit >= 100:
            group, limit = group + _TENS[word], 10
        elif word == "hundred" and 0 < group < 10:
            group, limit = group * 100, 100
        elif word in _SCALES and group and _SCALES[word] < ceiling:
            total, group, limit, ceiling = total + group * _SCALES[word], 0, 10**3, _SCALES[word]
        else:
            return None
    return total + group if words and total + group else None


def is_words(s: str) -> bool:
    """Whether normalized `s` is plain words rather than mathematics."""
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", s)
    return re.search(r"[^\W\d_]{2}", bare) is not None and not _NOT_IN_WORDS.search(bare.strip())


def same_words(g: str, a: str) -> bool | None:
    """Whether two answers in words agree, without regard to case, articles and punctuation.

    None where the letters may be variables instead, in which case and order matter otherwise.
    """
    variables = "\\text" not in g + a and all(len(s) <= 3 or _is_alphabet(s) for s in (g, a))
    if _words(g) == _words(a):
        if variables and g != a and g.isupper() != a.isupper() and g.casefold() not in _KEPT:
            return None
        return True
    return None if variables else False


def _is_alphabet(s: str) -> bool:
    letters = sorted(s)
    return s.isalpha() and all(ord(y) - ord(x) == 1 for x, y in pairwise(letters))


def _words(s: str) -> list[str]:
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", s).casefold()
    words = re.findall(r"(?<!\w)-\d+(?:\.\d+)?|\d+(?:\.\d+)+|\w+", bare)
    words = [str(_VALUES.get(w, w)) for w in words]
    return [w for w in words if w not in ("the", "a", "an") or len(words) == 1]
