r"""Whether a response's final answer is right: the policy, and the functions that apply it.

Policy
------
*Where the answer is.* The last ``\boxed{…}`` or ``\fbox{…}`` after the last ``</think>`` (after nothing if there is no
``</think>``), never a search in the free text, which models learn to exploit. Prompts are never searched. The last
box decides; if it is empty or unclosed there is no answer. A response cut off by the length limit is judged by the same
rule; only without an answer is its reason ``truncated`` instead of ``no_answer``.

*What counts as equal.* The reference for doubtful cases is the grader of the paper's reward (Reasoning360,
``naive_dapo``: normalization, then sympy or numbers to a relative 1e-4). It is followed except where it would reward a
wrong answer; each exception is named below.

- Integers: equal value, in any notation (``27.0``, ``1,234``, ``1{,}234``, ``5!``, ``2^3``). No tolerance: the
  reference lets 10000 equal 10001.
- Decimals: a non-integer decimal is a rounding or truncation. It equals an exact value, or a longer decimal, if both
  differ by less than one unit of its last place and by at most 1e-4 of the value (the reference's tolerance), and if it
  has four significant digits. So 3.1416 is π and 0.3333 is 1/3; 3.14, 0.333 and 1.414 (for √2) are wrong. Otherwise
  decimals are exact: 0.5 is 1/2, 0.50001 is not.
- Fractions: unsimplified, improper, mixed and decimal forms of one value are equal. A whole number before a proper
  fraction is a mixed number: ``1\frac{4}{5}`` is 9/5.
- Percent: ``50\%`` equals 0.5, 1/2, and 50 (the sign as a unit, which questions that ask "what percent" leave out; not
  for bare numbers up to 1: 0.5 is not ``0.5\%``). A bare 0.5 and a bare 50 differ; the reference multiplies and divides
  any number by 100.
- Units, currency, degree signs: a missing one is tolerated on either side, a different one is not; free text is
  no unit (``5 perhaps``); nothing is converted
  (``2 km`` and ``2000 m`` differ, so do ``90^\circ`` and ``\pi/2``). Words for multiples count: ``2.5 million``.
- Bases: ``52_8`` equals a bare 52; another base or other digits do not. Where the gold answer has no base,
  ``52_8`` is wrong.
- Names: ``x = 5`` equals 5, but not ``y = 5``. In ``x = a = b`` all members must be right; what follows ``\approx``
  must be a rounding of what stands before it. Equations and inequalities are equal up to a constant factor and the
  order of the sides.
- Order: free in sets, in lists of values (with multiplicity; ``\pm`` is written out) and in unions; binding in tuples,
  vectors and intervals. ``(1,2)`` equals the bare list ``1,2`` in this order; a set never equals a tuple. Brackets of
  intervals must agree; ``0 \le x < 3`` is ``[0,3)``. Rows and columns of matrices must agree; a vector is not a tuple.
- Expressions: equal as functions of their variables, real numbers of either sign: ``\sqrt{x^2}`` is not ``x``. What
  has no value (``f(x)``, ``\angle ABC``, derivatives) equals only itself. Letters
  are case-sensitive; ``i`` is the imaginary unit, ``e`` Euler's number.
- Words: without regard to case, fonts and articles; number words are numbers. Multiple choice:
  ``(C)``, ``\text{C}``, ``C`` and ``(C) 12`` agree.

*What cannot be read* is never right: reason ``unparsable``, or ``gold_unparsable`` where it is the gold answer. Answers
beyond 2,000 characters and numbers of more than ten thousand digits count as such. Text is never evaluated as Python.

An answer that names two values, denies or doubts is no answer. ``docs/answers.md`` has the reasons, group by group.
"""

from __future__ import annotations

from typing import NamedTuple

from sppo_lit.rewards.math.boxes import extract_answer
from sppo_lit.rewards.math.equivalence import MAX_CHARS, Comparison
from sppo_lit.types import Reason

__all__ = ["equivalent", "extract_answer", "gold_error", "judge", "judge_exact", "load_symbolic", "readable"]


class Judgement(NamedTuple):
    """What is said of one response, and the rules by which its answer was accepted."""

    reward: float
    reason: Reason
    answer: str | None
    rule: str = ""


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` is equivalent to `gold` (both without box).

    Never raises, whatever the texts, but may take very long for a hostile answer: training uses `VerifierPool`.
    """
    quick = Comparison().compare(gold, answer)
    if quick is not None:
        return quick
    from sppo_lit.rewards.math.symbolic import symbolic_comparison

    return symbolic_comparison().compare(gold, answer) is True


def judge(response: str, gold: str, finished: bool = True) -> Judgement:
    """Judge one response; may take very long for a hostile one.

    Args:
        response: decoded response, without the prompt.
        gold: gold answer, without box.
        finished: False if the response was truncated.

    Returns:
        Reward (0 or 1), reason, extracted answer and rule.
    """
    quick = judge_exact(response, gold, finished)
    if quick is not None:
        return quick
    from sppo_lit.rewards.math.symbolic import parses, symbolic_comparison

    answer = extract_answer(response)
    assert answer is not None
    comparison = symbolic_comparison()
    if comparison.compare(gold, answer) is True:
        return Judgement(1.0, "correct", answer, comparison.rule)
    if not parses(gold):
        return Judgement(0.0, "gold_unparsable", answer)
    return Judgement(0.0, "wrong" if parses(answer) else "unparsable", answer)


def judge_exact(response: str, gold: str, finished: bool = True) -> Judgement | None:
    """As `judge`, by string and exact arithmetic alone (microseconds); None if sympy is needed to tell."""
    answer = extract_answer(response)
    if gold_error(gold):
        return Judgement(0.0, "gold_unparsable", answer)
    if answer is None:
        return Judgement(0.0, "no_answer" if finished else "truncated", None)
    comparison = Comparison()
    equal = comparison.compare(gold, answer)
    if equal is None:
        return None
    if equal:
        return Judgement(1.0, "correct", answer, comparison.rule)
    return Judgement(0.0, "unparsable" if len(answer) > MAX_CHARS else "wrong", answer)


def gold_error(gold: str) -> str:
    """Why no boxed answer can match a gold answer; empty if nothing is obviously wrong with it."""
    if not gold.strip():
        return "empty"
    if gold.count("{") - gold.count("\\{") != gold.count("}") - gold.count("\\}"):
        return "unbalanced braces: cut off?"
    return ""


def readable(response: str, gold: str) -> float:
    """1 if `gold` can be read as mathematics or words, else 0; has the signature of a custom reward."""
    from sppo_lit.rewards.math.symbolic import parses

    return float(not gold_error(gold) and parses(gold))


def load_symbolic() -> None:
    """Load sympy, so that the time is not counted against an answer."""
    from sppo_lit.rewards.math.reader import read

    read(r"\frac{\sqrt{x^2+1}}{2}\cdot \sin(\pi x)-3")
