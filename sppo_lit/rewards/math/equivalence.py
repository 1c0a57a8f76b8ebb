"""Comparison of two answers by structure, with exact arithmetic or, where that cannot decide, sympy at the leaves.

Every comparison is three-valued: True, False, or None for "needs sympy".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from sppo_lit.rewards.math.latex import normalize
from sppo_lit.rewards.math.numbers import Number, parse_base, parse_number, same_number
from sppo_lit.rewards.math.structure import Shape, has_variable, shape
from sppo_lit.rewards.math.units import Quantity, same_unit, split_quantity

MAX_CHARS = 2000
MAX_ITEMS = 64
Leaf = Callable[[str, str], "bool | None"]

_CHOICE = re.compile(r"\\text ?\{ ?\(?([A-Z])\)? ?\}|\(\\text ?\{ ?([A-Z]) ?\}\)|\(?([A-Z])\)?|\(([a-z])\)")
_CHOICE_FIRST = re.compile(r"(?:\\text ?\{ ?)?\(?([A-Z])(?:\)|[.:]) ?\}? ?(?=.)")
_COUNT = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORD_NUMBERS = {word: str(i) for i, word in enumerate(_COUNT)}
_CLOCK = re.compile(r"\d+(?::\d+)+", re.ASCII)


def all_of(parts: Sequence[bool | None]) -> bool | None:
    """Conjunction of three-valued truth values."""
    if any(p is False for p in parts):
        return False
    return None if any(p is None for p in parts) else True


def compare(gold: str, answer: str, leaf: Leaf) -> bool | None:
    """Whether two answers (raw text) agree; `leaf` compares values that are neither numbers nor words."""
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return bool(gold)
    if max(len(gold), len(answer)) > MAX_CHARS:
        return False
    g, a = normalize(gold), normalize(answer)
    if not g or not a:
        return False
    return _compare(g, a, leaf, 0)


def _compare(g: str, a: str, leaf: Leaf, depth: int) -> bool | None:
    if g == a:
        return True
    if depth > 6:
        return leaf(g, a)
    quick = compare_values(g, a)
    if quick is not None:
        return quick
    return _compare_shapes(shape(g), shape(a), leaf, depth + 1)


def _compare_shapes(g: Shape, a: Shape, leaf: Leaf, depth: int) -> bool | None:
    if g.name and a.name and g.name != a.name:
        if has_variable(g.lhs_rhs[1]) and has_variable(a.lhs_rhs[1]):
            return leaf("{}={}".format(*g.lhs_rhs), "{}={}".format(*a.lhs_rhs))
        return False
    if "equation" in (g.kind, a.kind):
        sides = [s.items if s.kind == "equation" else s.lhs_rhs for s in (g, a)]
        if not all(len(s) == 2 and s[0] for s in sides):
            return False
        same = all_of([_compare(x, y, leaf, depth) for x, y in zip(*sides, strict=True)]) if g.kind == a.kind else None
        return True if same else leaf(*("=".join(s) for s in sides))
    if "inequality" in (g.kind, a.kind):
        if g.kind != a.kind or len(g.items) != len(a.items):
            return False
        same = all_of([_compare(x, y, leaf, depth) for x, y in zip(g.items, a.items, strict=True)])
        if same and g.brackets == a.brackets:
            return True
        signs = [s.brackets.split() for s in (g, a)]
        return (
            leaf(*(f" {s[0]} ".join(x.items) for s, x in zip(signs, (g, a), strict=True)))
            if len(g.items) == 2
            else False
        )
    if g.kind == "chain":
        return _compare(g.items[0], a.items[0], leaf, depth) if a.kind in ("value", "chain") else False
    if a.kind == "chain":
        return all_of([_compare_shapes(g, shape(item), leaf, depth) for item in a.items])
    return _compare_collections(g, a, leaf, depth)


def _compare_collections(g: Shape, a: Shape, leaf: Leaf, depth: int) -> bool | None:
    kinds = {g.kind, a.kind}
    if "union" in kinds or "\\mathbb" in g.items[0:1] or _is_set_expression(g) or _is_set_expression(a):
        if g.kind == a.kind == "union" and (same := _unordered(g.items, a.items, leaf, depth)):
            return same
        return leaf(_text(g), _text(a)) if kinds <= {"union", "tuple", "value", "set"} else False
    if kinds == {"value"}:
        x, y = g.items[0], a.items[0]
        quick = compare_values(x, y)
        return leaf(x, y) if quick is None else quick
    if kinds == {"list", "value"}:
        many, one = (g, a) if g.kind == "list" else (a, g)
        pieces = one.items[0].split(",")  # "100,200" reads as a number unless the other side is a list
        if len(many.items) == len(pieces) > 1:
            return _unordered(many.items, pieces, leaf, depth)
        return False
    if kinds == {"set", "value"}:
        return _compare(g.items[0], a.items[0], leaf, depth) if len(g.items) == len(a.items) == 1 else False
    if len(g.items) != len(a.items) or len(g.items) > MAX_ITEMS:
        return False
    if kinds == {"matrix"}:
        return _compare_rows([r.split("&") for r in g.items], [r.split("&") for r in a.items], leaf, depth)
    if kinds <= {"list", "set"}:
        named = [all(shape(i).name for i in s.items) for s in (g, a)]
        return (
            _ordered(g.items, a.items, leaf, depth)
            if named[0] != named[1]
            else _unordered(g.items, a.items, leaf, depth)
        )
    if kinds == {"tuple"}:
        return _ordered(g.items, a.items, leaf, depth) if g.brackets == a.brackets else False
    if kinds == {"tuple", "list"}:
        return _ordered(g.items, a.items, leaf, depth) if "()" in (g.brackets, a.brackets) else False
    return False


def _is_set_expression(s: Shape) -> bool:
    return s.kind == "value" and any(w in s.items[0] for w in ("\\mathbb", "\\setminus"))


def _text(s: Shape) -> str:
    if s.kind == "union":
        return "\\cup ".join(s.items)
    if s.kind == "set":
        return "\\{" + ",".join(s.items) + "\\}"
    return s.brackets[:1] + ",".join(s.items) + s.brackets[1:]


def _ordered(g: Sequence[str], a: Sequence[str], leaf: Leaf, depth: int) -> bool | None:
    truths: list[bool | None] = []
    for x, y in zip(g, a, strict=True):
        truths.append(_compare(x, y, leaf, depth))
        if truths[-1] is False:
            return False
    return all_of(truths)


def _unordered(g: Sequence[str], a: Sequence[str], leaf: Leaf, depth: int) -> bool | None:
    if len(g) != len(a) or len(g) > MAX_ITEMS:
        return False
    left, unsure = list(a), False
    for x in g:
        truths: list[bool | None] = []
        for y in left:
            truths.append(_compare(x, y, leaf, depth))
            if truths[-1]:
                break
        if truths and truths[-1]:
            left.pop(len(truths) - 1)
        elif any(t is None for t in truths):
            unsure = True
        else:
            return False
    return None if unsure else True


def _compare_rows(g: list[list[str]], a: list[list[str]], leaf: Leaf, depth: int) -> bool | None:
    if [len(r) for r in g] != [len(r) for r in a]:
        return False
    return all_of([_ordered(x, y, leaf, depth) for x, y in zip(g, a, strict=True)])


def compare_values(g: str, a: str) -> bool | None:
    """Whether two values agree by words or exact arithmetic; None if neither can decide."""
    if (choice := _same_choice(g, a)) is not None:
        return choice
    base_g, base_a = parse_base(g), parse_base(a)
    if base_g and base_a:
        return base_g == base_a
    if base_g or base_a:  # a missing base is a missing unit, a base the gold does not have is another number
        plain = a if base_g else g
        digits, base = base_g or base_a or ("", 0)
        if parse_number(plain) is not None:
            return plain.upper().lstrip("0") == digits and (bool(base_g) or base == 10)
        return None
    p, q = split_quantity(g), split_quantity(a)
    x, y = magnitude(p), magnitude(q)
    if x is not None and y is not None:
        return same_unit(p.unit, q.unit) and _same_percent(x, y, p.percent, q.percent)
    words = is_words(g), is_words(a)
    if all(words):
        return _words(g) == _words(a) or (None if "\\text" not in g + a and len(g) < 6 else False)
    letters = is_choice(g), is_choice(a)
    if ((x is not None or letters[0]) and (words[1] or letters[1])) or ((y is not None or letters[1]) and words[0]):
        return _words(g) == _words(a)
    if letters[0] and y is not None:
        return _words(g) == _words(a)
    if _CLOCK.fullmatch(p.core) and _CLOCK.fullmatch(q.core):
        return same_unit(p.unit, q.unit) and [int(n) for n in p.core.split(":")] == [int(n) for n in q.core.split(":")]
    return None


def magnitude(q: Quantity) -> Number | None:
    """The exact number of a quantity including its multiplier word but not its percent sign; None if not a number."""
    core = q.core[1:] if q.core.startswith("+") else q.core
    if core.startswith("(") and core.endswith(")"):
        core = core[1:-1]
    number = parse_number(core)
    return number.scaled(q.scale) if number is not None and q.scale != 1 else number


def _same_percent(x: Number, y: Number, x_percent: bool, y_percent: bool) -> bool:
    if x_percent == y_percent:
        return same_number(x, y)
    percent, bare = (x, y) if x_percent else (y, x)
    if same_number(percent.scaled(Fraction(1, 100)), bare):
        return True
    return abs(bare.value) > 1 and same_number(percent, bare)  # the percent sign as a unit that is left out


def is_words(s: str) -> bool:
    """Whether `s` is plain words rather than mathematics."""
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", s)
    return (
        "\\" not in bare and re.search(r"[^\W\d_]{2}", bare) is not None and not any(c in bare for c in "+=*^_<>/|,;")
    )


def is_choice(s: str) -> bool:
    """Whether `s` is a letter of multiple choice."""
    return _CHOICE.fullmatch(s) is not None


def is_clock(s: str) -> bool:
    """Whether `s` is a time of day or a ratio, ``4:51``."""
    return _CLOCK.fullmatch(split_quantity(s).core) is not None


def ambiguity(gold: str) -> str:
    """The two readings of a gold answer (raw text) that is ambiguous; empty if it has one reading only."""
    s = normalize(gold) if len(gold) <= MAX_CHARS else ""
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", gold.strip(), re.ASCII):
        return "a number with thousands separators, or a list"
    if re.fullmatch(r"[A-Z]", s):
        return "a letter of multiple choice, or a variable"
    if re.fullmatch(r"-?\d+,\d{1,2}", gold.strip(), re.ASCII):
        return "a list, or a decimal comma"
    if re.search(r"\d+/\d+[a-zA-Z(\\]", s):
        return "a/b x reads as (a/b) x or as a/(b x)"
    return ""


def _words(s: str) -> str:
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", s).casefold()
    words = re.findall(r"\w+", bare)
    return " ".join(_WORD_NUMBERS.get(w, w) for w in words if w not in ("the", "a", "an") or len(words) == 1)


def _same_choice(g: str, a: str) -> bool | None:
    r"""Multiple choice: ``(C)``, ``\text{C}``, ``C`` and ``(C) 12`` are one answer."""
    m = _CHOICE.fullmatch(g)
    if m is None or (m[3] and "(" not in g and not _CHOICE.fullmatch(a) and not _CHOICE_FIRST.match(a)):
        return None
    letter = m[1] or m[2] or m[3] or m[4].upper()
    if n := _CHOICE.fullmatch(a):
        return (n[1] or n[2] or n[3] or n[4].upper()) == letter
    if n := _CHOICE_FIRST.match(a):
        return n[1] == letter
    if re.fullmatch(r"\\text ?\{ ?\(?[a-z]\)? ?\}", a) and (m[1] or m[2]):
        return a.removeprefix("\\text").strip("{}() ").upper() == letter
    return False if "(" in g or "\\text" in g else None
