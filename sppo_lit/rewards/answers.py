"""Whether a response's final answer is right."""

from __future__ import annotations

from sppo_lit.rewards.boxes import extract_answer
from sppo_lit.rewards.equivalence import compare
from sppo_lit.types import Reason

__all__ = ["equivalent", "extract_answer", "judge", "judge_exact", "load_symbolic"]

Judgement = tuple[float, Reason, "str | None"]


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` is equivalent to `gold`; never raises for what they say, may take long (see `VerifierPool`)."""
    quick = compare(gold, answer, _needs_sympy)
    if quick is not None:
        return quick
    from sppo_lit.rewards.symbolic import symbolically_equal

    return symbolically_equal(gold, answer)


def judge(response: str, gold: str, finished: bool = True) -> Judgement:
    """(reward, reason, extracted answer) of one response; may take long."""
    quick = judge_exact(response, gold, finished)
    if quick is not None:
        return quick
    from sppo_lit.rewards.symbolic import parses, symbolically_equal

    answer = extract_answer(response)
    assert answer is not None
    if symbolically_equal(gold, answer):
        return 1.0, "correct", answer
    if not parses(gold):
        return 0.0, "gold_unparsable", answer
    return 0.0, "wrong" if parses(answer) else "unparsable", answer


def judge_exact(response: str, gold: str, finished: bool = True) -> Judgement | None:
    """As `judge`, by string and exact arithmetic alone (microseconds); None if sympy is needed to tell."""
    answer = extract_answer(response)
    if answer is None:
        return 0.0, "no_answer" if finished else "truncated", None
    equal = compare(gold, answer, _needs_sympy)
    if equal is None:
        return None
    return (1.0, "correct", answer) if equal else (0.0, "wrong", answer)


def _needs_sympy(gold: str, answer: str) -> None:
    return None


def load_symbolic() -> None:
    """Import sympy now, so that its second or two are not counted against an answer."""
    import sppo_lit.rewards.symbolic  # noqa: F401
