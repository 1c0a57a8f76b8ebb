"""The outer structure of an answer: relations, lists, sets, tuples, intervals, unions, matrices. Text in, text out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sppo_lit.rewards.math.latex import matrix_rows, split_top, unwrap

_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|psi|omega"
_NAME = re.compile(
    rf"(?:m ?)?(?:\\(?:angle|triangle|widehat|overline) ?)?"
    rf"(?:[A-Za-z]|[A-Z][A-Za-z]{{1,11}}|[A-Za-z]{{3,12}}|\\(?:{_GREEK}|Delta|Omega)"
    rf"|\\(?:text|overline) ?\{{[^{{}}]*\}}|\|[A-Z]{{2}}\||\\frac ?\{{[A-Z]{{1,3}}\}} ?\{{[A-Z]{{1,3}}\}}"
    rf"|\{{[A-Z]{{1,4}}\}}|\([a-z](?:, ?[a-z]){{1,4}}\))(?:_\{{?\w+\}}?)?'*(?:\([A-Za-z0-9,]{{1,6}}\))?'*"
)
_RELATION = r"\\approx(?![a-z])|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|\\in(?![a-z])|=|<|>"
_FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_RATIO = re.compile(r"(?:[A-Z][A-Za-z]{0,3}|[a-z])(?:_\{?\w+\}?)?(?::(?:[A-Z][A-Za-z]{0,3}|[a-z])(?:_\{?\w+\}?)?)+")
_NO_NAME = re.compile(
    r"\b(?:[Nn]ot?|[Nn]ever|nor|[Nn]either|[Ww]rong|[Ff]alse|[Ii]ncorrect|[Ee]xcept|but|[Ww]ithout|[Ee]xcluding|isn|"
    r"[Aa]nything|[Ii]nstead|or|than|[Uu]nless)\b"
)
_COMMAND = re.compile(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+")
_BUILDER = re.compile(
    r"\\\{ ?([A-Za-z]) ?(?:\\mid(?![a-z])|:|\||\\in ?\\mathbb\{R\} ?(?:\\mid(?![a-z])|:|\|)) ?(.*)\\\}"
)
_CLOSERS = {"(": ")[]", "[": ")]", "\\{": ("\\}",)}


@dataclass(frozen=True)
class Shape:
    """The parts of an answer.

    Attributes:
        kind: ``value``, ``chain`` (of equal values), ``equation``, ``inequality``, ``list``, ``set``,
            ``tuple``, ``union`` or ``matrix``.
        items: the parts as text; both sides of an equation, the rows (joined by ``&``) of a matrix.
        brackets: the outer brackets of a tuple or interval; the relation signs of an inequality.
        name: the name given to the value, e.g. ``x`` in ``x = 5``.
        lhs_rhs: both sides of the relation that gave `name`.
        shown: decimals that follow a sign of approximation.
        relation: the whole relation that gave an interval.
        source: the text of a matrix or of a value.
    """

    kind: str
    items: tuple[str, ...]
    brackets: str = ""
    name: str = ""
    lhs_rhs: tuple[str, str] = ("", "")
    shown: tuple[str, ...] = ()
    relation: str = ""
    source: str = ""


def has_variable(s: str) -> bool:
    """Whether `s` contains letters other than e and i as variables."""
    bare = _COMMAND.sub(" ", s)
    return any(c.isalpha() and c not in "ei" for c in bare) or any(f"\\{g}" in s for g in _GREEK.split("|"))


def is_name(s: str) -> bool:
    """Whether `s` can be the name of a value, left of an equals sign."""
    if len(s) >= 60 or _NO_NAME.search(s):
        return False
    return bool(_NAME.fullmatch(s) or (":" in s and _RATIO.fullmatch(s)))


def shape(s: str) -> Shape:
    """The outermost structure of normalized text `s`."""
    if (m := _BUILDER.fullmatch(s)) and re.search(rf"(?<![A-Za-z\\]){m[1]}(?![A-Za-z])", m[2]):
        s = m[2].strip()
    if (
        s.startswith("(")
        and "," not in s
        and (inner := unwrap(s, "(", ")")) != s
        and len(split_top(inner, _RELATION)) > 1
    ):
        s = inner
    cases = [p for _, p in split_top(s, r"\\cup(?![a-z])")]
    if len(cases) > 1 and all(len(split_top(case, _RELATION)) > 1 for case in cases):
        return Shape("union", tuple(cases))
    parts = split_top(s, _RELATION)
    if len(parts) > 1 and len(split_top(s, "[,;]")) == 1:
        return _relation(parts)
    return _plain(s)


def _relation(parts: list[tuple[str, str]]) -> Shape:
    signs, pieces = [p[0] for p in parts[1:]], [p[1] for p in parts]
    if all(sign in ("=", "\\approx", "\\in") for sign in signs):
        if len(pieces) == 2 and is_name(pieces[1]) and not is_name(pieces[0]) and pieces[0]:
            pieces.reverse()
        if not pieces[0] or is_name(pieces[0]):
            inner = _chain(pieces[1:], signs[1:])
            return replace(inner, name=pieces[0], lhs_rhs=(pieces[0], pieces[1]))
        if len(pieces) == 2 and (has_variable(pieces[0]) or has_variable(pieces[1])) and signs[0] == "=":
            return Shape("equation", (pieces[0], pieces[1]))
        return _chain(pieces, signs)
    interval = _interval(signs, pieces)
    if interval:
        relation = "".join(f"{sign} {piece}" for sign, piece in parts).strip()
        return replace(_plain(interval), name=_variable(pieces), relation=relation if len(parts) == 2 else "")
    if all(sign in (">", "\\ge") for sign in signs):  # c > b > a is a < b < c
        signs, pieces = [_FLIP[sign] for sign in reversed(signs)], pieces[::-1]
    return Shape("inequality", tuple(pieces), " ".join(signs))


def _chain(pieces: list[str], signs: list[str]) -> Shape:
    r"""``a = b \approx c``: the exact part, all of whose members must agree, and what it is approximately."""
    exact, shown = [pieces[0]], list[str]()
    for sign, piece in zip(signs, pieces[1:], strict=True):
        if sign == "\\approx" or shown:
            shown.append(piece)
        else:
            exact.append(piece)
    outer = _plain(exact[0]) if len(exact) == 1 else Shape("chain", tuple(exact))
    return replace(outer, shown=tuple(shown))


def _variable(pieces: list[str]) -> str:
    """The variable of an inequality: the middle of three parts, or the one that is a name."""
    return pieces[1] if len(pieces) == 3 else next((p for p in pieces if is_name(p)), "")


def _interval(signs: list[str], pieces: list[str]) -> str:
    r"""The interval that ``a < x \le b`` or ``x > a`` describes; empty if it is another kind of inequality."""
    if len(pieces) == 3 and is_name(pieces[1]):
        low, high = pieces[0], pieces[2]
        if set(signs) <= {">", "\\ge"}:
            signs, low, high = [_FLIP[sign] for sign in reversed(signs)], high, low
        if set(signs) <= {"<", "\\le"}:
            return ("(" if signs[0] == "<" else "[") + f"{low},{high}" + (")" if signs[1] == "<" else "]")
        return ""
    if len(pieces) != 2:
        return ""
    sign, (left, right) = signs[0], pieces
    if is_name(right) and not is_name(left):
        left, right, sign = right, left, _FLIP.get(sign, sign)
    if not is_name(left) or has_variable(right):
        return ""
    return {
        "<": f"(-\\infty,{right})",
        "\\le": f"(-\\infty,{right}]",
        ">": f"({right},\\infty)",
        "\\ge": f"[{right},\\infty)",
        "\\ne": f"(-\\infty,{right})\\cup({right},\\infty)",
    }.get(sign, "")


def _plain(s: str) -> Shape:
    s = unwrap(s, "{", "}")
    rows = matrix_rows(s)
    if rows is not None:
        return Shape("matrix", tuple("&".join(row) for row in rows), source=s)
    pieces = [p for _, p in split_top(s, r"\\cup(?![a-z])")]
    if len(pieces) > 1:
        return Shape("union", tuple(pieces))
    items = [p for _, p in split_top(s, "[,;]")]
    if len(items) > 1:
        return Shape("list", _expand([i for i in items if i]))
    if "\\pm" in s or "\\mp" in s:
        inner = _bracketed(s)
        if inner is None:
            return Shape("list", _expand([s]))
    return _bracketed(s) or Shape("value", (s,), source=s)


def _expand(items: list[str]) -> tuple[str, ...]:
    r"""Items with ``\pm`` written out as two."""
    out: list[str] = []
    for item in items:
        if "\\pm" in item or "\\mp" in item:
            out.append(item.replace("\\pm", "+").replace("\\mp", "-"))
            out.append(item.replace("\\pm", "-").replace("\\mp", "+"))
        else:
            out.append(item)
    return tuple(out)


def _bracketed(s: str) -> Shape | None:
    left = s[:2] if s.startswith("\\{") else s[:1]
    right = s[-2:] if s.endswith("\\}") else s[-1:]
    if left not in _CLOSERS or right not in _CLOSERS[left] or len(s) < len(left) + len(right):
        return None
    inner = s[len(left) : len(s) - len(right)].strip()
    if any(depth < 0 for depth in _depths(inner)):
        return None  # "(a)(b)": the outer signs belong to different pairs
    if inner.startswith("\\begin") and matrix_rows(inner) is not None:
        return _plain(inner)
    items = [p for _, p in split_top(inner, "[,;]")]
    if left == "\\{" and inner == "\\emptyset":
        return None  # a set with the empty set in it
    if left == "\\{":
        return Shape("set", _expand([i for i in items if i]))
    if len(items) == 1:
        return _plain(inner) if left + right == "()" and inner else None
    return Shape("tuple", tuple(items), left + right)


def _depths(s: str) -> list[int]:
    depths, depth = [], 0
    for char in s:
        depth += (char in "([{") - (char in ")]}")
        depths.append(depth)
    return depths
