"""Comparison of values with sympy: read by `reader`, evaluated numerically to many digits.

Two expressions without variables are equal if their difference vanishes to a hundred digits more than its terms have;
with variables, if it does at several fixed points, positive and signed (a point where either side is undefined, or only
one is real, proves nothing). No `simplify`, in which other graders hang. Text is never handed to an evaluator.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import sympy

from sppo_lit.rewards.math.equivalence import MODULUS, Comparison, is_choice, is_clock, magnitude
from sppo_lit.rewards.math.latex import normalize, split_top
from sppo_lit.rewards.math.numbers import Number, parse_base, rounds_to, same_number
from sppo_lit.rewards.math.reader import digits, read
from sppo_lit.rewards.math.structure import shape
from sppo_lit.rewards.math.units import compound, same_unit, split_quantity
from sppo_lit.rewards.math.words import is_words

DIGITS = 30
_SIGNS = r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|=|<|>"
_INEXACT = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
"""Evaluated by quadrature or extrapolation, whose digits are few."""


def parses(text: str) -> bool:
    """Whether `text` (raw) can be read as mathematics, as words or as a choice."""
    return len(text) <= 2000 and _readable(normalize(text), 0)


def _readable(s: str, depth: int) -> bool:
    if not s or depth > 6:
        return False
    if magnitude(split_quantity(s)) is not None or is_words(s) or parse_base(s) or is_choice(s) or is_clock(s):
        return True
    if compound(s) or s == "\\ldots":
        return True
    if m := MODULUS.fullmatch(s):
        return _readable(m[1], depth + 1)
    outer = shape(s)
    if outer.kind == "value" and outer.items[0] == s:
        return s == "\\emptyset" or read(split_quantity(s).core) is not None or as_set(s) is not None
    items = [cell for row in outer.items for cell in row.split("&")] if outer.kind == "matrix" else outer.items
    return all(_readable(item, depth + 1) for item in items)


def symbolic_comparison() -> Comparison:
    """A comparison with sympy for values that exact arithmetic cannot compare."""
    return Comparison(_safe(same_leaf), _safe(near_leaf))


def _safe(leaf: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """`leaf`, false for answers in which sympy fails."""

    def compare(gold: str, answer: str) -> bool:
        try:
            return leaf(gold, answer)
        except MemoryError:
            raise
        except Exception:
            return False

    return compare


def same_leaf(g: str, a: str) -> bool:
    """Whether two values or relations (normalized text) agree."""
    signs_g, signs_a = (split_top(s, _SIGNS) for s in (g, a))
    if len(signs_g) > 1 or len(signs_a) > 1:
        return len(signs_g) == len(signs_a) == 2 and _same_relation(signs_g, signs_a)
    if any(w in s for s in (g, a) for w in ("\\cup", "\\mathbb", "\\setminus")):
        x, y = as_set(g), as_set(a)
        return x is not None and y is not None and _same_set(x, y)
    p, q = split_quantity(g), split_quantity(a)
    if not same_unit(p, q) or p.percent != q.percent:
        return False
    x, y = read(p.core), read(q.core)
    if x is None or y is None:
        return False
    if p.scale != 1 or q.scale != 1:
        x, y = x * sympy.Rational(p.scale), y * sympy.Rational(q.scale)
    decimal = [n for n in (magnitude(p), magnitude(q)) if n is not None and n.ulp]
    return same_value(x, y, decimal[0] if len(decimal) == 1 else None)


def near_leaf(exact: str, shown: str) -> bool:
    """Whether the decimal `shown` is a rounding of the value `exact`, to as many digits as it shows."""
    p, q = split_quantity(exact), split_quantity(shown)
    x, y = read(p.core), magnitude(q)
    if x is None or y is None or not isinstance(x, sympy.Expr) or x.free_symbols or not same_unit(p, q):
        return False
    u = _number(x * sympy.Rational(p.scale))
    return u is not None and abs(u.imag) < 1e-20 and rounds_to(Fraction(mpmath.nstr(u.real, 25)), y, q.core)


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
    if not (isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr)):
        return False
    if x.has(sympy.zoo, sympy.nan) or y.has(sympy.zoo, sympy.nan):
        return False
    if x == y:
        return True
    if any(z.has(sympy.oo) and not z.has(*_INEXACT) for z in (x, y)):
        return False
    symbols = sorted(x.free_symbols | y.free_symbols, key=lambda s: s.name)
    if symbols:
        return _agree(x, y, symbols)
    if _same_number(x, y):
        return True
    u, v = _number(x), _number(y)
    return decimal is not None and u is not None and v is not None and _rounds(u, v, decimal)


def _points(symbols: list[Any], counts: set[Any] | frozenset[Any] = frozenset()) -> list[dict[Any, Any]]:
    """Fixed points of evaluation: three all positive, one all negative, two of mixed signs; `counts` whole."""
    points = []
    for k in range(6):
        signs = [1 if k < 3 or (k > 3 and (j + k) % 2) else -1 for j in range(len(symbols))]
        values = [sympy.Rational(7 * j + 13 * k + 5, 11 + 3 * j + 2 * k) for j in range(len(symbols))]
        point = {symbol: sign * value for symbol, sign, value in zip(symbols, signs, values, strict=True)}
        points.append({s: sympy.Integer(k + 3 + 2 * j) if s in counts else point[s] for j, s in enumerate(symbols)})
    return points


def _agree(x: Any, y: Any, symbols: list[Any]) -> bool:
    """Whether two expressions agree at the points: to a few digits at all, to many at two of them."""
    agreed = 0
    sums = x.atoms(sympy.Sum, sympy.Product) | y.atoms(sympy.Sum, sympy.Product)
    counts = {s for one in sums for limit in one.limits for bound in limit[1:] for s in bound.free_symbols}
    for point in _points(symbols, counts):
        u, v = _number(x, point), _number(y, point)
        if u is None or v is None:
            continue
        real = abs(u.imag) < 1e-20 * (1 + abs(u)), abs(v.imag) < 1e-20 * (1 + abs(v))
        same = _close(u, v) and (agreed >= 2 or _same_number(x.xreplace(point), y.xreplace(point)))
        if same:
            agreed += 1
        elif all(real) or agreed == 0:
            return False
    return agreed >= 2


def _same_number(x: Any, y: Any) -> bool:
    r"""Whether two constants are equal: their difference vanishes far beyond the digits that either can have.

    Comparing some leading digits would let ``e^{-100}`` pass for 0 and ``\tanh 50`` for 1.
    """
    if x.is_Rational and y.is_Rational:
        return bool(x == y)
    u, v = _number(x), _number(y)
    if u is None or v is None or not _close(u, v):
        return False
    if x.has(*_INEXACT) or y.has(*_INEXACT):  # a closed form tells 1 - 2^{-100} from 1, digits do not
        closed = x.doit(), y.doit()
        return any(z.has(*_INEXACT) for z in closed) or _same_number(*closed)
    try:
        extra = int(digits(x) + digits(y))
        rest = (x - y).evalf(10, maxn=100 + extra)
        if not all(part.is_Float or part.is_Rational for part in rest.as_real_imag()):
            return False
        return bool(abs(rest) <= sympy.Float(10) ** -(70 + extra) * max(1, sympy.Float(abs(u))))
    except MemoryError:
        raise
    except Exception:
        return False


def _number(expr: Any, point: dict[Any, Any] | None = None) -> Any:
    """`expr` as an mpmath complex number of `DIGITS` significant digits, or None."""
    try:
        value = expr.xreplace(point) if point else expr
        if value.has(sympy.Limit):
            value = value.doit()
        real, imag = value.evalf(DIGITS, maxn=2 * DIGITS + 200).as_real_imag()
        if not (real.is_Float or real.is_Rational) or not (imag.is_Float or imag.is_Rational):
            return None
        with mpmath.workdps(DIGITS):
            return mpmath.mpc(*(mpmath.mpf(str(part.evalf(DIGITS))) for part in (real, imag)))
    except MemoryError:
        raise
    except Exception:
        return None


def _close(u: Any, v: Any) -> bool:
    """Whether two numbers agree to 18 digits, or both are too small to have that many."""
    with mpmath.workdps(DIGITS):
        size = max(abs(u), abs(v))
        return bool(abs(u - v) <= mpmath.mpf(10) ** (12 - DIGITS) * size or size < mpmath.mpf(10) ** -25)


def _rounds(u: Any, v: Any, decimal: Number) -> bool:
    if abs(u.imag) > 1e-20 or abs(v.imag) > 1e-20:
        return False
    with mpmath.workdps(DIGITS):
        exact = [Fraction(mpmath.nstr(n.real, 25)) for n in (u, v)]
    other = exact[1] if abs(exact[0] - decimal.value) < abs(exact[1] - decimal.value) else exact[0]
    return other != decimal.value and same_number(
        decimal, Number(other)
    )  # if they agree to 25 digits but are not equal


def _same_relation(g: list[tuple[str, str]], a: list[tuple[str, str]]) -> bool:
    """Two equations or inequalities whose difference of sides is the same up to a constant (positive if ordered)."""
    flip = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}
    sign_g, sign_a = g[1][0], a[1][0]
    sides = [read(s) for s in (g[0][1], g[1][1], a[0][1], a[1][1])]
    if any(not isinstance(s, sympy.Expr) or s.has(sympy.oo) for s in sides):
        return False
    x, y = sides[0] - sides[1], sides[2] - sides[3]
    symbols = sorted(x.free_symbols | y.free_symbols, key=lambda s: s.name)
    for point in _points(symbols):
        u, v = _number(x, point), _number(y, point)
        if u is not None and v is not None and abs(u) > 1e-12 and abs(v) > 1e-12:
            break
    else:
        return False
    if not symbols or abs((v / u).imag) > 1e-15 or not same_value(y * x.xreplace(point), x * y.xreplace(point)):
        return False
    if sign_g in ("=", "\\ne"):
        return sign_a == sign_g
    return sign_a == (sign_g if (v / u).real > 0 else flip.get(sign_g, ""))


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
    values = [read(i) for i in outer.items]
    if any(not isinstance(v, sympy.Expr) or v.free_symbols for v in values):
        return None
    if outer.kind == "set":
        return sympy.FiniteSet(*values)
    if outer.kind == "tuple" and len(values) == 2:
        if (values[0] > values[1]) is sympy.true:  # no interval: sympy would make it the empty set
            return None
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
