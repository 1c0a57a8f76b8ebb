"""Equivalence that needs sympy, through math-verify's LaTeX parser."""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from sppo_lit.rewards.numbers import clean

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)


def _parse(text: str) -> list[Any]:
    try:
        return parse(f"${clean(text)}$", [LatexExtractionConfig()], parsing_timeout=None)
    except Exception:
        return []


def parses(text: str) -> bool:
    """Whether the parser makes a mathematical object of `text`."""
    return any(not isinstance(item, str) for item in _parse(text))


def symbolically_equal(gold: str, answer: str) -> bool:
    """Whether sympy finds the two equivalent."""
    g, a = _parse(gold), _parse(answer)
    try:
        return bool(g and a and verify(g, a, timeout_seconds=None))
    except Exception:
        return False
