"""Comparison of values with sympy: parsed by math-verify's LaTeX grammar, evaluated numerically to many digits.

Two expressions without variables are equal if they agree to 20 significant digits; with variables, if they agree at
several fixed points, positive and signed (a point where either side is undefined, or only one is real, proves
nothing). No `simplify`, in which other graders hang; what cannot be evaluated falls back to
`math_verify.verify`. Text is never handed to Python's or sympy's evaluator.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
from math_verify import verify
from sympy.parsing import sympy_parser

from sppo_lit.rewards.math.equivalence import compare, is_choice, is_clock, is_words, magnitude
from sppo_lit.rewards.math.latex import normalize, split_top
from sppo_lit.rewards.math.numbers import Number, parse_base, same_number
from sppo_lit.rewards.math.structure import shape
from sppo_lit.rewards.math.units import same_unit, split_quantity

MAX_CHARS = 600
MAX_DEPTH = 40
DIGITS = 30
_MIXED = re.compile(r"(?<![\d.}])(\d+) ?\\frac ?\{(\d+)\} ?\{(\d+)\}")
_NUMERAL = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)°")
_INDEXED = re.compile(r"\\[A-Za-z]+|[EIe](?= ?_)")
_RENAMED = {
    "E": "\\Xi",
    "I": "\\Upsilon",
    "e": "\\varsigma",
}  # with an index they are not the constants that the grammar takes them for
_SUN = re.compile(r"_ ?\{? ?\\odot ?\}?")
_SCIENTIFIC = re.compile(r"(?<![\d.])(\d+\.\d+)[eE]([+-]?\d{1,3})(?![\d.])", re.ASCII)
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none", equations=False
)
_SIGNS = r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|=|<|>"
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)


class TooBig(Exception):
    """An expression whose value has too many digits for an answer."""


def forbid_eval() -> None:
    """Disable sympy's evaluation of strings in this process (called by the workers).

    The LaTeX grammar passes its number tokens to `sympify`, which would run Python's `eval`: numbers are parsed here,
    all other strings refused.
    """

    def only_numbers(s: str, *args: Any, **kwargs: Any) -> Any:
        if not _NUMERAL.fullmatch(s):
            raise ValueError("strings are not evaluated here")
        return sympy.Integer(int(s)) if s.isdigit() else sympy.Float(s)

    sympy_parser.eval_expr = only_numbers
    sympy_parser.parse_expr = only_numbers


@lru_cache(maxsize=512)
def parse(text: str) -> Any:
    """Parse normalized LaTeX into a sympy object; None if that fails or its value has too many digits."""
    if any(sign in text for sign in (":", "'", "\\ldots", "\\dots", "\\cdots")):
        return None  # the grammar would skip them
    if len(text) > MAX_CHARS or text.count("{") + text.count("(") > MAX_DEPTH * 2:
        return None
    text = _MIXED.sub(lambda m: f"({m[1]}+\\frac{{{m[2]}}}{{{m[3]}}})" if int(m[2]) < int(m[3]) else m[0], text)
    text = re.sub(r"(?<=\d) ?(?=\(|\\frac)", r"\\cdot ", text)  # the grammar would read 2(3) as 2 + 3
    text = _INDEXED.sub(lambda m: _RENAMED.get(m[0], m[0]), text)
    text = _SUN.sub("_{sun}", text)
    text = _SCIENTIFIC.sub(r"(\1\\cdot 10^{\2})", text)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text).replace("°", r"\cdot \frac{\pi}{180}")
    text = re.sub(r"\\text ?\{ ?([A-Za-z]+) ?\}", r"\1", text).removeprefix("+")
    try:
        expression = latex2sympy(text, normalization_config=_NORMALIZATION, conversion_config=_CONVERSION)
    except MemoryError:
        raise
    except Exception:
        return None
    if not isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        return None
    try:
        return _exact(expression)
    except TooBig:
        return None


def _exact(expr: Any) -> Any:
    """`expr` with decimals as exact fractions and ``i`` as the imaginary unit; raises TooBig as `_digits`."""
    _digits(expr)
    floats = {f: sympy.Rational(str(f)) for f in expr.atoms(sympy.Float)}
    units = {s: sympy.I for s in expr.free_symbols if s.name == "i"}
    return expr.xreplace({**floats, **units}) if floats or units else expr


def _digits(expr: Any) -> float:
    """Rough number of decimal digits of the largest number in `expr`; raises TooBig beyond ten thousand."""
    if isinstance(expr, sympy.MatrixBase):
        return max((_digits(e) for e in expr), default=1.0)
    if expr.is_Number:
        size = float(len(str(expr))) if expr.is_Float else expr.p.bit_length() * 0.302 if expr.is_Rational else 1.0
    elif expr.is_Pow:
        base, power = _digits(expr.base), _digits(expr.exp)
        if expr.exp.free_symbols or (expr.base.free_symbols and power < 3):
            return base + power
        size = max(base, 1.0) * 10.0 ** min(power, 10.0)
    elif isinstance(expr, (sympy.factorial, sympy.factorial2, sympy.gamma)):
        size = 10.0 ** (1.2 * _digits(expr.args[0])) if not expr.free_symbols else 1.0
    else:
        parts = [_digits(a) for a in expr.args if isinstance(a, (sympy.Basic, sympy.MatrixBase))]
        size = (sum(parts) if expr.is_Mul else max(parts, default=0.0) + 1.0) if parts else 1.0
    if size > 1e4:
        raise TooBig
    return max(size, 0.0)


def parses(text: str) -> bool:
    """Whether `text` (raw) can be read as mathematics, as words or as a choice."""
    return len(text) <= 2000 and _readable(normalize(text), 0)


def _readable(s: str, depth: int) -> bool:
    if not s or depth > 6:
        return False
    if magnitude(split_quantity(s)) is not None or is_words(s) or parse_base(s) or is_choice(s) or is_clock(s):
        return True
    outer = shape(s)
    if outer.kind == "value" and outer.items[0] == s:
        return s == "\\emptyset" or parse(split_quantity(s).core) is not None or as_set(s) is not None
    items = [cell for row in outer.items for cell in row.split("&")] if outer.kind == "matrix" else outer.items
    return all(_readable(item, depth + 1) for item in items)


def symbolically_equal(gold: str, answer: str) -> bool:
    """Whether two answers (raw text) agree, with sympy for values that exact arithmetic cannot compare."""
    return compare(gold, answer, same_leaf) is True


def same_leaf(g: str, a: str) -> bool:
    """Whether two values or relations (normalized text) agree."""
    signs_g, signs_a = (split_top(s, _SIGNS) for s in (g, a))
    if len(signs_g) > 1 or len(signs_a) > 1:
        return len(signs_g) == len(signs_a) == 2 and _same_relation(signs_g, signs_a)
    if any(w in s for s in (g, a) for w in ("\\cup", "\\mathbb", "\\setminus")):
        x, y = as_set(g), as_set(a)
        return x is not None and y is not None and _same_set(x, y)
    p, q = split_quantity(g), split_quantity(a)
    if not same_unit(p.unit, q.unit):
        return False
    x, y = parse(p.core), parse(q.core)
    if x is None or y is None:
        return False
    if p.scale != 1 or q.scale != 1:
        x, y = x * sympy.Rational(p.scale), y * sympy.Rational(q.scale)
    decimal = [n for n in (magnitude(p), magnitude(q)) if n is not None and n.ulp]
    return same_value(x, y, decimal[0] if len(decimal) == 1 else None)


def same_value(x: Any, y: Any, decimal: Number | None = None) -> bool:
    """Whether two sympy objects are equal.

    Args:
        x: one of them.
        y: the other.
        decimal: the one of them that was written as a rounded decimal, if exactly one was.
    """
    if isinstance(x, sympy.MatrixBase) or isinstance(y, sympy.MatrixBase):
        both = isinstance(x, sympy.MatrixBase) and isinstance(y, sympy.MatrixBase) and x.shape == y.shape
        return both and all(same_value(u, v) for u, v in zip(x, y, strict=True))
    if x == y:
        return x not in (sympy.nan, sympy.zoo)
    if not (isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr)):
        return _verify(x, y)
    if x.has(sympy.oo, sympy.zoo, sympy.nan) or y.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    symbols = sorted(x.free_symbols | y.free_symbols, key=lambda s: s.name)
    if not symbols:
        digits = DIGITS + int(max(_digits(x), _digits(y)))
        u, v = _number(x, None, digits), _number(y, None, digits)
        if u is None or v is None:
            return False
        if _close(u, v, digits):
            return True
        return decimal is not None and _rounds(u, v, decimal)
    return _agree(x, y, symbols)


def _points(symbols: list[Any]) -> list[dict[Any, Any]]:
    """Fixed points of evaluation: three all positive, one all negative, two of mixed signs."""
    points = []
    for k in range(6):
        signs = [1 if k < 3 or (k > 3 and (j + k) % 2) else -1 for j in range(len(symbols))]
        values = [sympy.Rational(7 * j + 13 * k + 5, 11 + 3 * j + 2 * k) for j in range(len(symbols))]
        points.append({symbol: sign * value for symbol, sign, value in zip(symbols, signs, values, strict=True)})
    return points


def _agree(x: Any, y: Any, symbols: list[Any]) -> bool:
    agreed, digits = 0, DIGITS + int(max(_digits(x), _digits(y)))
    for point in _points(symbols):
        u, v = _number(x, point, digits), _number(y, point, digits)
        if u is None or v is None:
            continue
        real = abs(u.imag) < 1e-20 * (1 + abs(u)), abs(v.imag) < 1e-20 * (1 + abs(v))
        if _close(u, v, digits):
            agreed += 1
        elif all(real) or agreed == 0:
            return False
    return agreed >= 2 or (agreed == 0 and _verify(x, y))


def _number(expr: Any, point: dict[Any, Any] | None = None, digits: int = DIGITS) -> Any:
    """`expr` as an mpmath complex number of `digits` digits, or None."""
    import mpmath

    try:
        value = (expr.xreplace(point) if point else expr).evalf(digits, maxn=2 * digits + 200)
        real, imag = value.as_real_imag()
        if not (real.is_Float or real.is_Rational) or not (imag.is_Float or imag.is_Rational):
            return None
        with mpmath.workdps(digits):
            return mpmath.mpc(*(mpmath.mpf(str(part.evalf(digits))) for part in (real, imag)))
    except MemoryError:
        raise
    except Exception:
        return None


def _close(u: Any, v: Any, digits: int = DIGITS) -> bool:
    import mpmath

    with mpmath.workdps(digits):
        return bool(abs(u - v) <= mpmath.mpf(10) ** (12 - digits) * max(abs(u), abs(v), mpmath.mpf(10) ** -6))


def _rounds(u: Any, v: Any, decimal: Number) -> bool:
    from fractions import Fraction

    if abs(u.imag) > 1e-20 or abs(v.imag) > 1e-20:
        return False
    import mpmath

    with mpmath.workdps(DIGITS):
        exact = [Fraction(mpmath.nstr(n.real, 25)) for n in (u, v)]
    other = exact[1] if abs(exact[0] - decimal.value) < abs(exact[1] - decimal.value) else exact[0]
    return same_number(decimal, Number(other))


def _verify(x: Any, y: Any) -> bool:
    try:
        return bool(verify(x, y, timeout_seconds=None))
    except MemoryError:
        raise
    except Exception:
        return False


def _same_relation(g: list[tuple[str, str]], a: list[tuple[str, str]]) -> bool:
    """Two equations or inequalities whose difference of sides is the same up to a constant (positive if ordered)."""
    flip = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}
    sign_g, sign_a = g[1][0], a[1][0]
    sides = [parse(s) for s in (g[0][1], g[1][1], a[0][1], a[1][1])]
    if any(not isinstance(s, sympy.Expr) for s in sides):
        return False
    x, y = sides[0] - sides[1], sides[2] - sides[3]
    symbols = sorted(x.free_symbols | y.free_symbols, key=lambda s: s.name)
    ratios = []
    for point in _points(symbols):
        u, v = _number(x, point), _number(y, point)
        if u is not None and v is not None and abs(u) > 1e-12 and abs(v) > 1e-12:
            ratios.append(v / u)
    if len(ratios) < 3 or not all(_close(r, ratios[0]) for r in ratios) or abs(ratios[0].imag) > 1e-15:
        return False
    if sign_g in ("=", "\\ne"):
        return sign_a == sign_g
    return sign_a == (sign_g if ratios[0].real > 0 else flip[sign_g])


def as_set(s: str) -> Any:
    """Parse a union of intervals and finite sets, or a difference of such sets; None for anything else."""
    if len(pieces := split_top(s, r"\\cup(?![a-z])")) > 1:
        parts = [as_set(p) for _, p in pieces]
        return None if any(p is None for p in parts) else sympy.Union(*parts)
    if len(pieces := split_top(s, r"\\setminus(?![a-z])")) == 2:
        whole, less = as_set(pieces[0][1]), as_set(pieces[1][1])
        return None if whole is None or less is None else whole - less
    if s == "\\mathbb{R}":
        return sympy.S.Reals
    if s.startswith("(") and s.endswith(")") and shape(s).kind == "union":
        return as_set(s[1:-1])
    outer = shape(s)
    values = [parse(i) for i in outer.items]
    if any(not isinstance(v, sympy.Expr) or v.free_symbols for v in values):
        return None
    if outer.kind == "set":
        return sympy.FiniteSet(*values)
    if outer.kind == "tuple" and len(values) == 2:
        try:
            return sympy.Interval(*values, outer.brackets[0] == "(", outer.brackets[1] == ")")
        except Exception:
            return None
    return None


def _same_set(x: Any, y: Any) -> bool:
    try:
        return bool(x == y or x.symmetric_difference(y).is_empty)
    except Exception:
        return False
