r"""A strict reader of normalized LaTeX: a sympy expression, or None for whatever is not certainly understood.

Grammars made for well-formed input repair or skip what they do not expect (``5*`` is 5, ``\frac{dy}{dx}`` is 0,
``A_{16}`` is A), and a policy that is paid for correct answers finds that. This one is a recursive descent that must
consume every token. What has a meaning but no value (``f(x)``, ``\angle ABC``, ``\frac{dy}{dx}``, ``\vec v``,
``x_1``) becomes a symbol whose name is what was written, so that it equals only itself. No string is ever evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy

MAX_CHARS = 600
MAX_DEPTH = 40
MAX_DIGITS = 1e4
_TOKEN = re.compile(
    r"\\text ?\{(?P<text>[^{}]*)\}"
    r"|\\begin ?\{(?P<begin>[a-zA-Z]+\*?)\}(?:\{[lcr| ]*\})?|\\end ?\{(?P<end>[a-zA-Z]+\*?)\}"
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3}(?![\d.]))?|\.\d+)|(?P<command>\\[A-Za-z]+|\\\\|\\[{}|])"
    r"|(?P<letter>[A-Za-z])|(?P<sign>[-+/^_!()\[\]{}|,&'°=])|(?P<space> )",
    re.ASCII,
)
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "varrho", "sigma", "varsigma", "tau", "upsilon", "phi", "varphi", "chi",
    "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
    "hbar", "ell",
}  # fmt: skip
_ACCENTS = {
    "vec": "vec", "hat": "hat", "widehat": "hat", "bar": "bar", "overline": "bar", "tilde": "tilde",
    "widetilde": "tilde", "dot": "dot", "ddot": "ddot", "mathcal": "mathcal", "mathbb": "mathbb",
}  # fmt: skip
_NAMED = {"angle", "triangle", "odot"}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "arccot": sympy.acot, "sinh": sympy.sinh,
    "cosh": sympy.cosh, "tanh": sympy.tanh, "coth": sympy.coth, "exp": sympy.exp, "ln": sympy.log,
    "log": lambda x: sympy.log(x, 10), "lg": lambda x: sympy.log(x, 10), "sqrt": sympy.sqrt, "abs": sympy.Abs,
    "arcsinh": sympy.asinh, "arccosh": sympy.acosh, "arctanh": sympy.atanh,
}  # fmt: skip
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sinh": "arcsinh", "cosh": "arccosh",
            "tanh": "arctanh"}  # fmt: skip
_BIG = {"sum": sympy.Sum, "prod": sympy.Product}
_OF_SEVERAL = {"max", "min", "gcd", "lcm"}
_NOT_IN_ARGUMENTS = {*_FUNCTIONS, *_OF_SEVERAL, *_BIG, "int", "lim"} - {"sqrt"}
_APPLIED = set("fgFG")
"""Letters that are functions before any bracket; other letters before a bracket with a lone letter or number only."""
_CALLED = set("hpqvwPQTUVCE")
_DIFFERENTIAL = re.compile(
    r"\\frac ?\{(?:d|\\partial) ?(?:\^\{?\d\}?)? ?[a-zA-Z]?\}\{(?:(?:d|\\partial) ?[a-zA-Z](?:\^\{?\d\}?)? ?)+\}"
    r"|(?<![A-Za-z\\])d[a-z]?/d[a-z](?![A-Za-z])"
)


class Unreadable(Exception):
    """The text is not certainly understood."""


class TooBig(Unreadable):
    """An expression whose value has too many digits for an answer."""


@lru_cache(maxsize=512)
def read(text: str) -> Any:
    """Read normalized LaTeX as a sympy expression or matrix; None if that fails or its value has too many digits."""
    if len(text) > MAX_CHARS or text.count("{") + text.count("(") > 2 * MAX_DEPTH:
        return None
    if (
        "\\infty" in text
        and text.strip("+- ") != "\\infty"
        and not any(f"\\{op}" in text for op in (*_BIG, "int", "lim"))
    ):
        return None  # sympy's infinity swallows what is added to it
    try:
        reader = _Reader(_tokens(text))
        value = reader.whole()
        reader.expect("")
        digits(value)
    except MemoryError:
        raise
    except Exception:  # Unreadable, or whatever sympy makes of nonsense
        return None
    return value


def digits(expr: Any) -> float:
    """Rough number of decimal digits that the value of `expr` has before and after its point.

    Raises:
        TooBig: more than ten thousand.
    """
    if isinstance(expr, sympy.MatrixBase):
        return max((digits(e) for e in expr), default=1.0)
    if expr.is_Number:
        size = max(expr.p.bit_length(), expr.q.bit_length()) * 0.302 if expr.is_Rational else 1.0
    elif expr.is_Pow or isinstance(expr, sympy.exp):
        base, power = (digits(expr.base), digits(expr.exp)) if expr.is_Pow else (1.0, digits(expr.args[0]))
        if expr.free_symbols and (expr.exp.free_symbols or power < 3):
            return base + power
        size = max(base, 1.0) * 10.0 ** min(power, 10.0)
    elif isinstance(expr, (sympy.factorial, sympy.factorial2, sympy.gamma)):
        size = _factorial_digits(expr.args[0]) if not expr.free_symbols else 1.0
    elif isinstance(expr, (sympy.tanh, sympy.coth, sympy.sinh, sympy.cosh)):
        size = 10.0 ** min(digits(expr.args[0]), 10.0)  # tanh(50) is 1 up to its 43rd digit
    else:
        parts = [digits(a) for a in expr.args if isinstance(a, (sympy.Basic, sympy.MatrixBase))]
        size = (sum(parts) if expr.is_Mul else max(parts, default=0.0) + 1.0) if parts else 1.0
    if size > MAX_DIGITS:
        raise TooBig
    return max(size, 0.0)


def _factorial_digits(argument: Any) -> float:
    if not argument.is_Number:
        return float(10.0 ** min(1.2 * digits(argument), 10.0))
    size = abs(float(argument)) + 2
    return size * math.log10(size)


def symbol(name: str) -> Any:
    """The symbol for what was written as `name`."""
    return sympy.Symbol(name)


def power(base: Any, exponent: Any) -> Any:
    """``base ^ exponent``, refused before it is computed if it would be too long."""
    if isinstance(base, sympy.MatrixBase):
        if exponent in (sympy.Symbol("T"), sympy.Symbol("top"), sympy.Symbol("intercal")):
            return base.T
        if not exponent.is_Integer or abs(exponent) > 64:
            raise Unreadable
        return base**exponent
    if isinstance(exponent, sympy.MatrixBase):
        raise Unreadable
    if base.is_Number and exponent.is_Number:
        if base.is_zero and not exponent.is_positive:
            raise Unreadable
        if abs(base) != 1 and base.is_Rational and abs(exponent) * digits(base) > MAX_DIGITS:
            raise TooBig
    return sympy.Pow(base, exponent)


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of every token; derivatives are one token each.

    Raises:
        Unreadable: a character that is not of the language.
    """
    tokens, position = [], 0
    while position < len(text):
        if text[position] in "\\d" and (m := _DIFFERENTIAL.match(text, position)):
            tokens.append(("opaque", re.sub(r"[\\{} ]|frac", "", m[0])))
            position = m.end()
            continue
        m = _TOKEN.match(text, position)
        if m is None:
            raise Unreadable
        kind = m.lastgroup or ""
        if kind == "text" and re.fullmatch(r" ?[A-Za-z] ?", m[0][m.start(kind) - m.start() : -1]):
            tokens.append(("letter", m[kind].strip()))
        elif kind == "command" and (name := m[kind][1:]) not in ("\\", "{", "}", "|"):
            tokens.append(("command", name))
        elif kind != "space":
            tokens.append((kind, m[kind]))
        position = m.end()
    tokens.append(("", ""))
    return tokens


class _Reader:
    """A recursive descent over tokens; every method raises `Unreadable` rather than guess."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.i, self.depth, self.bars, self.integrals = tokens, 0, 0, 0, 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.tokens[min(self.i + ahead, len(self.tokens) - 1)]

    def at(self, *texts: str) -> bool:
        kind, text = self.peek()
        return text in texts and kind != "text"

    def next(self) -> tuple[str, str]:
        token = self.peek()
        self.i += 1
        return token

    def expect(self, text: str) -> None:
        if self.next()[1] != text:
            raise Unreadable

    def accept(self, *texts: str) -> bool:
        if self.at(*texts) and self.peek()[0]:
            self.i += 1
            return True
        return False

    def expression(self) -> Any:
        """Terms joined by plus and minus."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        self.accept("+")
        value = self.term()
        while self.at("+", "-"):
            value = value + self.term() if self.next()[1] == "+" else value - self.term()
        self.depth -= 1
        return value

    def whole(self) -> Any:
        r"""An expression, or two with ``\choose`` between them."""
        value = self.expression()
        return self.binomial(value, self.expression()) if self.accept("choose") else value

    def term(self) -> Any:
        """Factors joined by products, quotients, remainders or nothing."""
        value = self.signed()
        while True:
            if self.accept("cdot"):
                value = value * self.signed()
            elif self.accept("/"):
                value = self.quotient(value, self.signed())
            elif self.accept("bmod", "mod"):
                value = sympy.Mod(self.integer(value), self.integer(self.signed()))
            elif self.starts_factor():
                if self.peek()[0] == "number" and self.tokens[self.i - 1][1] not in ("!", ")", "i"):
                    raise Unreadable  # "x1": a missing index or a typing error, not a product
                if self.peek()[0] == "text":  # words are not factors: "0 \\text{ false}" is not 0
                    raise Unreadable
                value = value * self.postfix()
            else:
                return value

    def integer(self, value: Any) -> Any:
        if value.is_Number and not value.is_Integer:
            raise Unreadable
        return value

    def quotient(self, top: Any, bottom: Any) -> Any:
        if isinstance(bottom, sympy.MatrixBase) or bottom.is_zero:
            raise Unreadable
        return top / bottom

    def signed(self) -> Any:
        return -self.signed_once() if self.accept("-") else self.signed_once()

    def signed_once(self) -> Any:
        kind, text = self.peek()
        start = self.i
        value = self.postfix()
        if kind == "number" and text.isdigit() and self.i == start + 1 and self.at("frac"):
            part = self.postfix()
            mixed = part.is_Rational and 0 < part < 1 and self.tokens[start + 3][0] == "number"
            return value + part if mixed else value * part
        return value

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind == "letter":
            return not (self.integrals and text == "d" and self.peek(1)[0] in ("letter", "command"))
        if kind == "command":
            return text not in ("cdot", "bmod", "mod", "choose", "rfloor", "rceil", "pmod", "to") and text[0] != "\\"
        return (
            kind in ("number", "text", "begin", "opaque") or text in ("(", "[", "{") or (text == "|" and not self.bars)
        )

    def postfix(self) -> Any:
        """A factor with what is written behind it: factorials, powers, degrees."""
        value = self.atom()
        while True:
            if self.accept("!"):
                value = self.factorial(value, 2 if self.accept("!") else 1)
                if self.at("!"):
                    raise Unreadable
            elif self.accept("^"):
                value = power(value, self.exponent())
                if self.at("^"):
                    raise Unreadable
            elif self.accept("°"):
                value = value * sympy.pi / 180
            else:
                return value

    def factorial(self, value: Any, step: int) -> Any:
        if value.is_Number and not (value.is_Integer and 0 <= value < 4000):
            raise TooBig
        return sympy.factorial(value) if step == 1 else sympy.factorial2(value)

    def exponent(self) -> Any:
        """What follows ``^``: a group or, in plain notation, a signed factor: ``2^10``, ``e^-x``, ``x^y^z``."""
        if self.at("{"):
            return self.group("{", "}")
        value = -self.atom() if self.accept("-") else self.atom()
        return power(value, self.exponent()) if self.accept("^") else value

    def argument(self) -> Any:
        """The argument of a command: a group, a command with its own arguments, or one character."""
        if self.at("{"):
            return self.group("{", "}")
        kind, text = self.peek()
        if kind == "number" and len(text) > 1:
            self.tokens[self.i] = ("number", text[1:])
            return number(text[0])
        return self.atom()

    def group(self, left: str, right: str) -> Any:
        self.expect(left)
        bars, self.bars = self.bars, 0
        integrals, self.integrals = self.integrals, 0
        value = self.whole()
        self.expect(right)
        self.bars, self.integrals = bars, integrals
        return value

    def several(self) -> list[Any]:
        """Arguments in brackets, separated by commas."""
        left = self.next()[1]
        if left == "{" and self.at("("):
            values = self.several()
        else:
            values = [self.expression()]
            while self.accept(","):
                values.append(self.expression())
        self.expect({"(": ")", "{": "}", "[": "]", "\\{": "\\}"}.get(left, "?"))
        return values

    def atom(self) -> Any:
        kind, text = self.peek()
        if text in ("(", "[") and kind == "sign":
            return self.group(text, ")" if text == "(" else "]")
        if text == "{" and kind == "sign":
            return self.group("{", "}")
        if text == "|" and kind == "sign":
            self.next()
            bars, self.bars = self.bars, 1
            value = self.expression()
            self.expect("|")
            self.bars = bars
            return sympy.Abs(value)
        self.next()
        if kind == "number":
            if self.at("_"):
                raise Unreadable
            return number(text)
        if kind == "letter":
            return self.name(text)
        if kind == "text":
            return self.indexed(f"text({' '.join(text.split())})") if text.strip() else self.fail()
        if kind == "opaque":
            return symbol(text)
        if kind == "begin":
            return self.matrix(text)
        if kind == "command":
            return self.command(text)
        raise Unreadable

    def fail(self) -> Any:
        raise Unreadable

    def index(self) -> str:
        """The text of a subscript."""
        kind, text = self.next()
        if (kind, text) != ("sign", "{"):
            if kind not in ("number", "letter", "text", "command"):
                raise Unreadable
            return text
        depth, parts = 1, []
        while depth:
            kind, text = self.next()
            depth += (text == "{") - (text == "}") if kind == "sign" else 0
            if not kind:
                raise Unreadable
            if depth:
                parts.append(text)
        if not parts:
            raise Unreadable
        return " ".join(parts)

    def indexed(self, name: str) -> Any:
        """A symbol with its subscript and primes."""
        if self.accept("_"):
            name += f"_{self.index()}"
        while self.accept("'"):
            name += "'"
        return symbol(name)

    def name(self, letter: str) -> Any:
        """A variable, a constant, or a function of the problem applied to its argument."""
        if letter in "ei" and not self.at("_", "'"):
            return sympy.E if letter == "e" else sympy.I
        value = self.indexed(letter)
        if letter in _APPLIED and self.at("^"):
            start = self.i
            self.next()
            exponent = self.index()
            if self.at("(") or exponent == "- 1":  # the inverse function, or an iterate: not a power
                value = symbol(f"{value}^{exponent}")
            else:
                self.i = start
        lone = self.peek(1)[0] in ("letter", "number") and self.peek(2)[1] in (")", ",")
        start_value = self.peek(1) in (("number", "0"), ("number", "1"))  # no one multiplies by (0) or (1)
        if self.at("(") and (letter in _APPLIED or (lone and (letter in _CALLED or start_value))):
            return symbol(f"{value}({', '.join(map(str, self.several()))})")
        return value

    def matrix(self, name: str) -> Any:
        rows: list[list[Any]] = [[]]
        while True:
            rows[-1].append(self.expression())
            if self.accept("&"):
                continue
            if self.accept("\\\\") and self.peek()[0] != "end":
                rows.append([])
            elif self.next() == ("end", name):
                return self.made(name, rows)
            else:
                raise Unreadable

    def made(self, name: str, rows: list[list[Any]]) -> Any:
        if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > 64:
            raise Unreadable
        matrix = sympy.ImmutableDenseMatrix(rows)
        if name in ("pmatrix", "bmatrix", "matrix", "array", "smallmatrix", "Bmatrix"):
            return matrix
        if name == "vmatrix" and len(rows) <= 5:
            return matrix.det(method="berkowitz")
        raise Unreadable

    def command(self, name: str) -> Any:
        if name == "Gamma" and self.at("("):
            value = self.group("(", ")")
            return self.factorial(value - 1, 1) if value.is_Number else sympy.gamma(value)
        if name in _GREEK:
            return self.indexed(name)
        if name == "pi":
            return sympy.pi if not self.at("_", "'") else self.indexed(name)
        if name == "infty":
            return sympy.oo
        if name == "frac":
            top = self.argument()
            return self.quotient(top, self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            return self.binomial(top, self.argument())
        if name == "sqrt":
            return self.root()
        if name in ("lfloor", "lceil"):
            value = self.expression()
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return (sympy.floor if name == "lfloor" else sympy.ceiling)(value)
        if name in _OF_SEVERAL:
            return self.of_several(name)
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _BIG:
            return self.big(name)
        if name == "int":
            return self.integral()
        if name == "lim":
            return self.limit()
        if name == "det":
            value = self.atom()
            return value.det(method="berkowitz") if isinstance(value, sympy.MatrixBase) else self.fail()
        if name in _ACCENTS:
            inner = self.index()
            if re.fullmatch(r"[\d. ]*", inner):
                raise Unreadable
            return self.indexed(f"{_ACCENTS[name]}({inner})")
        if name in _NAMED:
            return self.figure(name)
        if name in ("top", "intercal"):
            return symbol(name)
        raise Unreadable

    def figure(self, name: str) -> Any:
        """An angle or a triangle: its points in the order written; an angle may be read from either side."""
        points = []
        while self.peek()[0] == "letter":
            points.append(self.next()[1] + ("'" * self.primes()))
        if not points:
            raise Unreadable
        if name == "angle":
            points = min(points, points[::-1])
        return symbol(f"{name} {' '.join(points)}")

    def primes(self) -> int:
        count = 0
        while self.accept("'"):
            count += 1
        return count

    def root(self) -> Any:
        if not self.accept("["):
            return sympy.sqrt(self.argument() if not self.at("(") else self.group("(", ")"))
        order = self.expression()
        self.expect("]")
        if not order.is_Integer or not 2 <= order <= 1000:
            raise Unreadable
        return power(self.argument() if not self.at("(") else self.group("(", ")"), 1 / order)

    def binomial(self, top: Any, bottom: Any) -> Any:
        if any(n.is_Number and not (n.is_Integer and 0 <= n < 10**5) for n in (top, bottom)):
            raise TooBig
        return sympy.binomial(top, bottom)

    def of_several(self, name: str) -> Any:
        values = self.several()
        if name in ("max", "min"):
            return (sympy.Max if name == "max" else sympy.Min)(*values)
        if all(v.is_Integer for v in values):
            return (sympy.igcd if name == "gcd" else sympy.ilcm)(*values) * sympy.Integer(1)
        return symbol(f"{name}({', '.join(sorted(map(str, values)))})")

    def function(self, name: str) -> Any:
        """A named function: its base or power, then the argument with or without brackets."""
        apply, exponent = _FUNCTIONS[name], None
        if name == "log" and self.accept("_"):
            base = self.argument() if self.peek()[0] != "number" else number(self.next()[1])
            apply = lambda x: sympy.log(x, base)  # noqa: E731
        if self.accept("^"):
            exponent = self.exponent()
            if exponent == -1:
                if name not in _INVERSE:
                    raise Unreadable
                apply, exponent = _FUNCTIONS[_INVERSE[name]], None
        if self.at("(", "[", "{", "|"):
            value = self.atom()
        else:
            value = self.signed_once() if not self.accept("-") else -self.postfix()
            while self.starts_factor() and not self.at("(", "[", "{", "|") and self.peek()[0] != "number":
                if self.peek()[1] in _NOT_IN_ARGUMENTS:
                    break
                value = value * self.postfix()
        if isinstance(value, sympy.MatrixBase):
            raise Unreadable
        if exponent is not None and self.at("^"):
            raise Unreadable
        result = apply(value)
        return result if exponent is None else power(result, exponent)

    def bound(self) -> Any:
        return self.group("{", "}") if self.at("{") else self.atom()

    def big(self, name: str) -> Any:
        r"""``\sum_{k=a}^{b}`` or ``\prod`` of the term that follows."""
        self.expect("_")
        self.expect("{")
        kind, letter = self.next()
        if kind != "letter" or self.next() != ("sign", "="):
            raise Unreadable
        low = self.expression()
        self.expect("}")
        self.expect("^")
        high, index = self.bound(), symbol(letter)
        body = self.term()
        if letter == "i":  # here a counter, not the imaginary unit
            body = body.xreplace({sympy.I: index})
        value = _BIG[name](body, (index, low, high))
        if any(s != index and re.search(rf"\b{letter}\b|_{letter}\b", s.name) for s in body.free_symbols):
            return symbol(str(value))  # terms such as a_k change with k: only equal to the same sum
        return value

    def integral(self) -> Any:
        if not self.accept("_"):
            raise Unreadable
        low = self.bound()
        self.expect("^")
        high = self.bound()
        self.integrals += 1
        body = sympy.Integer(1) if self.at("d") else self.expression()
        self.integrals -= 1
        self.expect("d")
        kind, name = self.next()
        if kind not in ("letter", "command"):
            raise Unreadable
        value = sympy.Integral(body, (symbol(name), low, high))
        if any(re.search(rf"\b{name}\b", s.name) and s.name != name for s in body.free_symbols):
            return symbol(str(value))
        return value

    def limit(self) -> Any:
        self.expect("_")
        self.expect("{")
        kind, name = self.next()
        if kind != "letter":
            raise Unreadable
        self.expect("to")
        target = self.expression()
        side = "+-"
        if self.accept("^"):
            side = self.next()[1]
        self.expect("}")
        body = self.term()
        if side not in ("+", "-", "+-"):
            raise Unreadable
        return sympy.Limit(body, symbol(name), target, side)


def number(text: str) -> Any:
    """An exact rational from the digits of an integer or decimal."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, places = mantissa.partition(".")
    value = sympy.Rational(int((whole + places) or "0"), 10 ** len(places))
    return value * sympy.Integer(10) ** int(exponent) if exponent else value
