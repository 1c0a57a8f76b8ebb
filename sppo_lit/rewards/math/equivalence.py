"""Comparison of two answers by structure, with exact arithmetic or, where that cannot decide, sympy at the leaves.

Every comparison is three-valued: True, False, or None for "needs sympy".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from sppo_lit.rewards.math.latex import normalize
from sppo_lit.rewards.math.numbers import Number, parse_base, parse_number, rounds_to, same_number
from sppo_lit.rewards.math.structure import Shape, has_variable, shape
from sppo_lit.rewards.math.units import Quantity, compound, same_unit, split_quantity
from sppo_lit.rewards.math.words import is_words, same_words

MAX_CHARS = 2000
MAX_ITEMS = 64
Leaf = Callable[[str, str], "bool | None"]

_CHOICE = re.compile(r"\\text ?\{ ?\(?([A-Z])\)? ?\}|\(\\text ?\{ ?\(?([A-Z])\)? ?\}\)|\(?([A-Z])\)?|\(([a-z])\)")
_CHOICE_FIRST = re.compile(r"(?:\\text ?\{ ?)?\(?([A-Z])(?:\)|[.:]) ?\}? ?(?=.)")
_LONE_VALUE = re.compile(
    r"(?=[\d.]|\\frac|\\sqrt|\\pi|\\\$)"
    r"(?:[\d.+\-/^{}()! %°]|,(?=\d{3})|\\(?:frac|sqrt|pi|cdot|%|\$)|\\text ?\{[a-z^\d ]*\})+"
)
_REMARK = re.compile(r"-?[\d.,]+ ?\(-?[\d.,]+\)", re.ASCII)
"""``5 (6)``: whether a product or a second thought cannot be told."""
_CLOCK = re.compile(r"\d+(?::\d+)+", re.ASCII)
MODULUS = re.compile(r"(.*\S) ?\\pmod ?(\w+) ?", re.DOTALL)
_GREEK = re.compile(
    r"\\(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega)(?![A-Za-z])"
)


def unknown(g: str, a: str) -> None:
    """The leaf of comparisons by exact arithmetic alone."""


def all_of(parts: Sequence[bool | None]) -> bool | None:
    """Conjunction of three-valued truth values."""
    if any(p is False for p in parts):
        return False
    return None if any(p is None for p in parts) else True


class Comparison:
    """A comparison of two answers, and the rules by which it accepted.

    Args:
        leaf: compares two values that are neither numbers nor words.
        near: whether the decimal given second is a rounding of the value given first.

    Attributes:
        rules: names of the rules that found parts of the answers equal, in the order of their use.
    """

    def __init__(self, leaf: Leaf = unknown, near: Leaf = unknown) -> None:
        self.leaf_of, self.near_of = leaf, near
        self.rules: list[str] = []

    @property
    def rule(self) -> str:
        """The rules that were used, for people."""
        return " + ".join(dict.fromkeys(self.rules))

    def compare(self, gold: str, answer: str) -> bool | None:
        """Whether two answers (raw text) agree."""
        self.rules = []
        gold, answer = gold.strip(), answer.strip()
        if gold == answer:
            return self.by("text") if gold else False
        if max(len(gold), len(answer)) > MAX_CHARS:
            return False
        if gold.isdigit() and answer.isdigit() and gold.isascii() and answer.isascii():
            return self.by("number") if gold.lstrip("0") == answer.lstrip("0") else False
        g, a = normalize(gold), normalize(answer)
        if not g or not a or _REMARK.fullmatch(a):
            return False
        for name in set(_GREEK.findall(g)):  # plain notation: "2*tau"
            a = re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", rf"\\{name} ", a)
        if "\\pmod" in g or "\\pmod" in a:
            whole, part = MODULUS.fullmatch(g), MODULUS.fullmatch(a)
            if whole is None or (part and whole[2] != part[2]):
                return False
            g, a = whole[1], part[1] if part else a
        return self.texts(g, a, 0)

    def by(self, rule: str) -> bool:
        """True, by `rule`."""
        self.rules.append(rule)
        return True

    def leaf(self, g: str, a: str) -> bool | None:
        """Whether two values agree as expressions."""
        same = self.leaf_of(g, a)
        return self.by("symbolic") if same else same

    def texts(self, g: str, a: str, depth: int) -> bool | None:
        """Whether two normalized texts agree."""
        if g == a:
            return self.by("notation")
        if depth > 6:
            return self.leaf(g, a)
        quick = self.values(g, a)
        if quick is not None:
            return quick
        return self.shapes(shape(g), shape(a), depth + 1)

    def shapes(self, g: Shape, a: Shape, depth: int) -> bool | None:
        """Whether two answers of known structure agree."""
        same = self.unrounded(g, a, depth)
        if same is False or not a.shown:
            return same
        return all_of([same, *(self.near(a.items[0], shown) for shown in a.shown)])

    def near(self, exact: str, shown: str) -> bool | None:
        """Whether what stands after a sign of approximation is a rounding of what stands before it."""
        p, q = split_quantity(exact), split_quantity(shown)
        x, y = magnitude(p), magnitude(q)
        if y is None:
            return self.texts(exact, shown, 6)
        if x is None:
            return self.near_of(exact, shown)
        if not same_unit(p, q):
            return False
        value = x.value
        if p.percent != q.percent:
            value = value * 100 if q.percent else value / 100
        return rounds_to(value, y, q.core)

    def unrounded(self, g: Shape, a: Shape, depth: int) -> bool | None:
        """As `shapes`, without what stands after a sign of approximation."""
        if a.name and a.kind == "value" and not g.name and _is_hedge(a):
            return False
        if g.name and a.name and g.name != a.name:
            if has_variable(g.lhs_rhs[1]) and has_variable(a.lhs_rhs[1]):
                return self.leaf("{}={}".format(*g.lhs_rhs), "{}={}".format(*a.lhs_rhs))
            return False
        if a.kind == "equation" and g.kind == "value" and not g.name:  # "2k+2 = 2(k+1)": both sides must be the value
            return all_of([self.texts(g.items[0], side, depth) for side in a.items])
        if "equation" in (g.kind, a.kind):
            sides = [s.items if s.kind == "equation" else s.lhs_rhs for s in (g, a)]
            if not all(len(s) == 2 and s[0] for s in sides):
                return False
            same = None
            if g.kind == a.kind:
                same = all_of([self.texts(x, y, depth) for x, y in zip(*sides, strict=True)])
            return True if same else self.leaf(*("=".join(s) for s in sides))
        if "inequality" in (g.kind, a.kind):
            return self.inequalities(g, a, depth)
        if g.kind == "chain":
            return self.shapes(shape(g.items[0]), a, depth)
        if a.kind == "chain":
            return all_of([self.shapes(g, shape(item), depth) for item in a.items])
        return self.collections(g, a, depth)

    def inequalities(self, g: Shape, a: Shape, depth: int) -> bool | None:
        """Whether an inequality agrees with another or with the one that gave an interval."""
        if g.kind == a.kind and len(g.items) == len(a.items) and g.brackets == a.brackets:
            same = all_of([self.texts(x, y, depth) for x, y in zip(g.items, a.items, strict=True)])
            if same:
                return self.by("inequality")
        single = all(s.relation or (s.kind == "inequality" and len(s.items) == 2) for s in (g, a))
        return self.leaf(*(s.relation or f" {s.brackets} ".join(s.items) for s in (g, a))) if single else False

    def collections(self, g: Shape, a: Shape, depth: int) -> bool | None:
        """Whether values, lists, sets, tuples, unions or matrices agree."""
        kinds = {g.kind, a.kind}
        if "union" in kinds or _is_set_expression(g) or _is_set_expression(a):
            if g.kind == a.kind == "union" and (same := self.unordered(g.items, a.items, depth)):
                return same
            return self.leaf(_text(g), _text(a)) if kinds <= {"union", "tuple", "value", "set"} else False
        if kinds == {"value"}:
            x, y = g.items[0], a.items[0]
            quick = self.values(x, y)
            return self.leaf(x, y) if quick is None else quick
        if kinds == {"list", "value"}:
            many, one = (g, a) if g.kind == "list" else (a, g)
            pieces = one.items[0].split(",")  # "100,200" reads as a number unless the other side is a list
            return self.unordered(many.items, pieces, depth) if len(many.items) == len(pieces) > 1 else False
        if kinds == {"set", "value"}:
            alone = len(g.items) == len(a.items) == 1 and depth <= 1  # {1} answers "1", but is no element of {1, 2}
            return self.texts(g.items[0], a.items[0], depth) if alone else False
        if kinds == {"matrix", "value"}:  # a sum or product of matrices
            value = g if g.kind == "value" else a
            return self.leaf(g.source, a.source) if "\\begin" in value.source else False
        if len(g.items) != len(a.items) or len(g.items) > MAX_ITEMS:
            return False
        if kinds == {"matrix"}:
            return self.rows([r.split("&") for r in g.items], [r.split("&") for r in a.items], depth)
        if kinds <= {"list", "set"}:
            named = [all(shape(i).name for i in s.items) for s in (g, a)]
            if named[0] != named[1] or "\\ldots" in g.items:
                return self.ordered(g.items, a.items, depth)
            return self.unordered(g.items, a.items, depth)
        if kinds == {"tuple"}:
            return self.ordered(g.items, a.items, depth) if g.brackets == a.brackets else False
        if kinds == {"tuple", "list"}:
            return self.ordered(g.items, a.items, depth) if "()" in (g.brackets, a.brackets) else False
        return False

    def ordered(self, g: Sequence[str], a: Sequence[str], depth: int) -> bool | None:
        """Whether items agree one by one."""
        truths: list[bool | None] = []
        for x, y in zip(g, a, strict=True):
            truths.append(self.texts(x, y, depth))
            if truths[-1] is False:
                return False
        return all_of(truths)

    def unordered(self, g: Sequence[str], a: Sequence[str], depth: int) -> bool | None:
        """Whether items agree in some order, each used once."""
        if len(g) != len(a) or len(g) > MAX_ITEMS:
            return False
        left, unsure = list(a), False
        for x in g:
            truths: list[bool | None] = []
            for y in left:
                truths.append(self.texts(x, y, depth))
                if truths[-1]:
                    break
            if truths and truths[-1]:
                left.pop(len(truths) - 1)
            elif any(t is None for t in truths):
                unsure = True
            else:
                return False
        return None if unsure else self.by("any order")

    def rows(self, g: list[list[str]], a: list[list[str]], depth: int) -> bool | None:
        """Whether the cells of two matrices agree."""
        if [len(r) for r in g] != [len(r) for r in a]:
            return False
        return all_of([self.ordered(x, y, depth) for x, y in zip(g, a, strict=True)])

    def values(self, g: str, a: str) -> bool | None:
        """Whether two values agree by words or exact arithmetic; None if neither can decide."""
        if (choice := _same_choice(g, a)) is not None:
            return self.by("choice") if choice else False
        base_g, base_a = parse_base(g), parse_base(a)
        if (base_g or base_a) and "=" not in g + a:
            return self.by("base") if _same_base(g, a, base_g, base_a) else False
        parts = compound(g), compound(a)
        if all(parts):
            return self.by("compound unit") if parts[0] == parts[1] else False
        p, q = split_quantity(g), split_quantity(a)
        x, y = magnitude(p), magnitude(q)
        if x is not None and y is not None:
            return self.numbers(x, y, p, q)
        words = is_words(g), is_words(a)
        if all(words):
            same = same_words(g, a)
            return self.by("words") if same else same
        letters = is_choice(g), is_choice(a)
        if (words[0] and (y is not None or letters[1])) or (words[1] and (x is not None or letters[0])):
            return False
        if (letters[0] and y is not None) or (letters[1] and x is not None):
            return False
        if _CLOCK.fullmatch(p.core) and _CLOCK.fullmatch(q.core):
            same = same_unit(p, q) and [int(n) for n in p.core.split(":")] == [int(n) for n in q.core.split(":")]
            return self.by("time or ratio") if same else False
        return None

    def numbers(self, x: Number, y: Number, p: Quantity, q: Quantity) -> bool:
        """Whether two exact numbers agree, their units and percent signs considered."""
        if not same_unit(p, q):
            return False
        if p.percent != q.percent:
            return self.by("percent") if _same_percent(x, y, p.percent) else False
        if not same_number(x, y):
            return False
        if p.unit != q.unit:
            self.by("unit left out")
        return self.by("number" if x.value == y.value else "rounding")


def _is_hedge(a: Shape) -> bool:
    """Whether ``no = yes`` or ``D = C`` looks like a name and its value, but names two answers."""
    value = a.items[0]
    words = is_words(value) and is_words(a.name) and not same_words(value, a.name)
    return words or (is_choice(value) and is_choice(a.name))


def _is_set_expression(s: Shape) -> bool:
    return s.kind == "value" and any(w in s.items[0] for w in ("\\mathbb", "\\setminus"))


def _text(s: Shape) -> str:
    if s.kind == "union":
        return "\\cup ".join(s.items)
    if s.kind == "set":
        return "\\{" + ",".join(s.items) + "\\}"
    return s.brackets[:1] + ",".join(s.items) + s.brackets[1:]


def _same_base(g: str, a: str, base_g: tuple[str, int] | None, base_a: tuple[str, int] | None) -> bool:
    """Digits in a base: a missing base is a missing unit, a base that the gold answer lacks is another number."""
    if base_g and base_a:
        return base_g == base_a
    digits, base = base_g or base_a or ("", 0)
    plain = (a if base_g else g).removeprefix("\\text").strip("{}() ").upper().lstrip("0")
    return plain == digits and (bool(base_g) or base == 10)


def magnitude(q: Quantity) -> Number | None:
    """The exact number of a quantity including its multiplier word but not its percent sign; None if not a number."""
    core = q.core[1:] if q.core.startswith("+") else q.core
    if core.startswith("(") and core.endswith(")"):
        core = core[1:-1]
    number = parse_number(core)
    return number.scaled(q.scale) if number is not None and q.scale != 1 else number


def _same_percent(x: Number, y: Number, x_percent: bool) -> bool:
    percent, bare = (x, y) if x_percent else (y, x)
    if same_number(percent.scaled(Fraction(1, 100)), bare):
        return True
    return abs(bare.value) > 1 and same_number(percent, bare)  # the percent sign as a unit that is left out


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


def _same_choice(g: str, a: str) -> bool | None:
    r"""Multiple choice: ``(C)``, ``\text{C}``, ``C`` and ``(C) 12`` are one answer.

    After the letter only a lone value may follow, the text of the option: words cannot be told from a denial or another
    choice.
    """
    m = _CHOICE.fullmatch(g)
    first = None if m is None else _CHOICE_FIRST.match(a)
    if m is None or (m[3] and "(" not in g and not _CHOICE.fullmatch(a) and not first):
        return None
    letter = m[1] or m[2] or m[3] or m[4].upper()
    if n := _CHOICE.fullmatch(a):
        return (n[1] or n[2] or n[3] or n[4].upper()) == letter
    if first:
        rest = a[first.end() :]
        rest = rest[:-1] if rest.endswith("}") and rest.count("}") > rest.count("{") else rest
        lone = _LONE_VALUE.fullmatch(rest) and not _REMARK.fullmatch(rest) and not split_quantity(rest).free
        return first[1] == letter and bool(lone)
    if re.fullmatch(r"\\text ?\{ ?\(?[a-z]\)? ?\}", a) and (m[1] or m[2]):
        return a.removeprefix("\\text").strip("{}() ").upper() == letter
    return False if "(" in g or "\\text" in g else None
