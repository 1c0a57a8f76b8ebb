r"""Normalization of answers: LaTeX and plain notation reduced to a small common subset, as text.

Meaning is not considered: only spacing, fonts, bracket sizes, Unicode signs and shorthand such as ``\frac12``.
All patterns are linear in the length of the text.
"""

from __future__ import annotations

import re

from sppo_lit.rewards.math.words import number_in_words

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "±": r"\pm ", "°": r"\degree ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", 
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ω": r"\omega ", "μ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ",
    "（": "(", "）": ")", "，": ",", "％": "%", "＝": "=", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "{,}": ",\\!", "**": "^",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_POWER = re.compile(f"[{''.join(_RAISED)}]+")
_SIGN = re.compile("|".join(re.escape(s) for s in sorted(_SIGNS, key=len, reverse=True)))
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|min|max|gcd|lcm"
_TEXT = r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|bm|boldsymbol|operatorname\*?)"
_BASE_IN_WORDS = re.compile(
    r"_\s*\{?\s*\\text\s*\{\s*(two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)\s*\}\s*\}?"
)

_REALS = re.compile(r"(?:x\s*(?:=|\\in)?\s*)?(?:\\text\s*\{)?\s*all (?:real numbers|reals)(?: x)?\s*\}?", re.IGNORECASE)
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"√\s*(\d+)", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(\d),\s?\\!\s?(?=\d)", r"\1"),  # 1,\!000 and 1{,}000
        (r"\\(?:boxed|fbox)(?=\s*\{)", ""),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
        (
            r"(?<!\\)\\(?:displaystyle|textstyle|limits|nolimits|quad|qquad|thinspace|enspace|hfill)(?![A-Za-z])"
            r"|(?<!\\)\\[,;:>]",
            " ",
        ),
        (r"(?<!\\)\\!|\\negthinspace|\\hspace\*?\{[^{}]*\}|\\phantom\s?(?:\{[^{}]*\}|[^{}])", ""),
        (r"(?<!\\)\\ |~", " "),
        (r"\\[()]|(?<!\\)\\[\[\]](?!\d)|(?<!\\)\$", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:mathrm|text|operatorname|mathsf)\{\s*([iepd])\s*\}", r"\1"),
        (_TEXT + r"(?![A-Za-z])", r"\\text"),
        (r"\{\s*\\(?:bf|rm|it|sf|tt)(?![A-Za-z])\s*", r"\\text{"),  # {\bf 5}: the font commands of plain TeX
        (r"(\\text\s*\{[^{}]*)\^\{(-?\d)\}", r"\1^\2"),
        (r"(\\text\s*\{[^{}]*)\^\{(-?\d)\}", r"\1^\2"),
        (r"\\text\s*\{\s*(?!min)(" + FUNCTIONS + r")\s*\}", r"\\\1 "),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", "°"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:langle|lparen)(?![A-Za-z])|⟨", "("),
        (r"\\(?:rangle|rparen)(?![A-Za-z])|⟩", ")"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:times|cdotp?|ast)(?![A-Za-z])|\*", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset "),
        (r"\\(?:simeq|sim|doteq)(?![A-Za-z])", r"\\approx "),
        (r"\\(?:R|reals|Reals)(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\imath(?![A-Za-z])", "i"),
        (r"\\(?:dots[cbm]?|cdots)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"\\rightarrow(?![A-Za-z])", r"\\to "),
        (r"\\(?:pmod|mod)\s*\{([^{}]*)\}|\(\s*(?:\\text\{)?\\?mod\s*\}?\s*([^()]*)\)", r"\\pmod \1\2 "),
        (r"\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:setminus|backslash)(?![A-Za-z])", r"\\setminus "),
        (r"\bnp\.|\bmath\.", ""),
        (r"(?<![\\A-Za-z])(" + FUNCTIONS + r"|sqrt|pi|infty)(?![A-Za-z}])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|oo|inf)(?![A-Za-z])", r"\\infty "),
        (r"\\text\s*\{\s*(\\infty|\\pi)\s*\}", r"\1 "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s\d}),\]]),?\s?\b(?:and|or)\b", " , "),
        (r"\\text\s*\{\s*,\s*\}", " , "),
        (r"(?:,\s){2,}|,\s*,", ", "),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d|[a-zA-Z])\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-zA-Z])", r"\1{\2}"),
        (r"\\frac\s*(\d)\s*([a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\\pi|\{[^{}]*\})\s*(\d|[a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\{(\d{1,3}),(\d{3})(?:,(\d{3}))?(?:,(\d{3}))?\}", r"{\1\2\3\4}"),
        (r"\s+", " "),
        (r" (?=\\[A-Za-z])", ""),
        (r"(?<=[-+/=<>()\[\]{}^_|:;°&]) | (?=[-+/=<>()\[\]{}^_|:;°&])", ""),
    ]
]
_SINGLE_BACKSLASH = re.compile(r"(?<!\\)\\(?!\\)|\\\\(?![A-Za-z])")
_MATHEMATICS = re.compile(r"[\d\\^_+=\[]")
_WORD = re.compile(r"\\text|(?<![\\A-Za-z])[A-Za-z]{2,}")
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+", re.ASCII)
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?:q|qslant)?(?![A-Za-z])")
_OR = re.compile(r",?\s*(?:\\(?:text|mbox|textrm)\s*\{\s*or\s*\}|\bor\b|\\lor(?![A-Za-z])|\\vee(?![A-Za-z]))")
_TEXT_LIST = re.compile(r"\\text ?\{([^{}]*,[^{}]*)\}")
_TEXT_NUMBER = re.compile(r"\\text\{ ?([-+]?(?:\\\$ ?)?[\d.,/]*\d)( [^{}]*)?\}")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix\*?|array|smallmatrix)\}(?:\{[lcr| ]*\})?(?:\[[lcr]\])?(.*)", re.DOTALL)


def normalize(text: str) -> str:
    """`text` in the common subset; texts that differ only in notation give the same string."""
    if text.isascii() and text.isdigit():
        return text
    text = text.strip()
    if text[:1].isalpha() or text.startswith("\\") or text.startswith("-"):
        if spelled := number_in_words(text):
            return spelled
        if _REALS.fullmatch(text):
            return "\\mathbb{R}"
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    text = _POWER.sub(lambda m: f"^{{{''.join(_RAISED[c] for c in m.group())}}}", text)
    s = _SIGN.sub(lambda m: _SIGNS[m.group()], text)
    if _SPACED.fullmatch(s.strip()):
        s = s.replace(" ", "")
    if "\\\\" in s and not _SINGLE_BACKSLASH.search(s):  # escaped twice
        s = s.replace("\\\\", "\\")
    if "mod" in s:
        s = s.replace("\\equiv", "=")
    if _INEQUALITY.search(s):
        s = _OR.sub(r" \\cup ", s)
    for pattern, new in _RULES:
        s = pattern.sub(new, s)
    s = _BASE_IN_WORDS.sub(lambda m: f"_{{{number_in_words(m[1])}}}", s)
    s = _unwrap_font(s)
    s = _TEXT_LIST.sub(lambda m: ",".join(f"\\text{{{piece.strip()}}}" for piece in m[1].split(",")), s)
    s = _TEXT_NUMBER.sub(lambda m: m[1] + (f"\\text{{{m[2].strip()}}}" if m[2] and m[2].strip() else ""), s)
    s = s.strip().rstrip(".,;: ").strip()
    while s.endswith("\\\\"):
        s = s[:-2].strip()
    return unwrap(s, "{", "}")


def _unwrap_font(s: str) -> str:
    r"""What is inside a font command around the whole answer, if it is mathematics: ``\mathbf{\frac{1}{2}}``."""
    inner = s.strip().removeprefix("\\text").lstrip()
    if len(inner) == len(s) or (content := unwrap(inner, "{", "}")) == inner:
        return s
    if re.fullmatch(r"\\text ?\{[^{}]*\}", content):
        return content
    return content if _MATHEMATICS.search(content) and not _WORD.search(content) else s


def unwrap(s: str, left: str, right: str) -> str:
    """`s` without outer brackets `left` and `right` that match each other."""
    while s.startswith(left) and s.endswith(right) and len(s) > 1 and _closes_at(s, left, right) == len(s) - 1:
        s = s[1:-1].strip()
    return s


def _closes_at(s: str, left: str, right: str) -> int:
    depth = 0
    for i, char in enumerate(s):
        if i and s[i - 1] == "\\":
            continue
        depth += (char == left) - (char == right)
        if depth == 0:
            return i
    return -1


def split_top(s: str, separators: str) -> list[tuple[str, str]]:
    """Split `s` at the `separators` (a regular expression) outside all brackets.

    Any closing bracket closes any opening one, as in half-open intervals.

    Returns:
        Pairs (separator before the piece, piece); the first separator is empty.
    """
    pieces, depth, start, before = [], 0, 0, ""
    for m in re.finditer(rf"\\begin|\\end|\\[{{}}]|[(\[{{]|[)\]}}]|(?P<sep>{separators})|\\[A-Za-z]+|\\.", s):
        token = m.group()
        if m["sep"] is not None and depth == 0:
            pieces.append((before, s[start : m.start()].strip()))
            start, before = m.end(), token.strip()
        elif token in ("(", "[", "{", "\\{", "\\begin"):
            depth += 1
        elif token in (")", "]", "}", "\\}", "\\end"):
            depth -= 1
    pieces.append((before, s[start:].strip()))
    return pieces


def matrix_rows(s: str) -> list[list[str]] | None:
    """Rows of cells if `s` is exactly one matrix environment, else None (determinants are not matrices)."""
    m = _MATRIX.match(s)
    if m is None or m[1].startswith(("v", "V")):
        return None
    end = f"\\end{{{m[1]}}}"
    body = m[2].strip()
    if not body.endswith(end) or "\\begin" in body[: -len(end)]:
        return None
    body = re.sub(r"\\hline|\\\\\s*$", "", body[: -len(end)].strip()).strip()
    return [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\", body)]
