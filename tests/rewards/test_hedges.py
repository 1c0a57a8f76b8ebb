"""Answers that name a second value, deny the first, or put doubt into words: none is paid."""

import itertools

import pytest

from sppo_lit.rewards.math.answers import judge

VALUES = [  # gold answer, as written in the answer, another value, in words
    ("5", "5", "6", "six"),
    ("-12", "-12", "12", "twelve"),
    (r"\frac{1}{2}", r"\frac{1}{2}", r"\frac{1}{3}", "one third"),
    ("0.75", "0.75", "0.5", "one half"),
    (r"3\sqrt{2}", r"3\sqrt{2}", r"2\sqrt{3}", "the other root"),
    (r"x^2+1", r"x^2+1", r"x^2-1", "its conjugate"),
    (r"(1,2)", "(1,2)", "(2,1)", "the reverse"),
    (r"\text{(C)}", "(C)", "(D)", "D"),
    (r"\text{(C)}", r"\text{(C)}", r"\text{(D)}", "another choice"),
    (r"B", r"\textbf{(B)}", r"\textbf{(E)}", "E"),
    (r"\text{yes}", r"\text{yes}", r"\text{no}", "no"),
    (r"40\%", r"40\%", r"60\%", "sixty percent"),
    (r"7\text{ cm}", r"7\text{ cm}", r"8\text{ cm}", "eight"),
    ("1011_2", "1011_2", "1100_2", "twelve"),
]
SIGNS = [
    r"\lor", r"\vee", r"\land", "/", ";", ",", r"\text{ or }", " or ", r"\text{ and }", r"\approx", r"\sim", r"\ne",
    r"\neq", r"\to", r"\Rightarrow", r"\iff", r"\mid", "|", r"\pm", r"\ldots", r"\cup", ":", r"\quad", r"\\", "&",
    r"\text{ vs }", "=", r"\equiv", r"\propto", "?", r"\text{; }", r"\text{ / }", " ", "+", r"\cdot", "-", "...",
    r"\leftrightarrow", r"\in", r"\subset", "<", ">", r"\le", r"\gg", r"\text{, or rather }", r"\text{ but also }",
    r"\text{ oder }", r"\text{ ou }", r"\text{ o }", "或", "または", r"\text{ или }", r"\text{ eller }", r"\text{ of }",
]  # fmt: skip
DOUBT = [
    "perhaps {}", "maybe {}", "possibly {}", "alternatively {}", "or {}", "rather {}", "not {}", "instead of {}",
    "versus {}", "unless {}", "otherwise {}", "else {}", "if not {}", "is wrong", "is false", "is incorrect", "never",
    "false", "wrong", "rejected", "cannot be it", "hopefully", "probably", "I guess", "presumably", "likely",
    "at least", "at most", "or so", "or more", "roughly {}", "and then {}", "also {}", "then {}", "both {}",
    "vielleicht {}", "oder {}", "eventuell", "peut-être {}", "ou bien {}", "sans doute", "quizás {}", "tal vez {}",
    "forse {}", "oppure {}", "talvez {}", "kanske {}", "misschien {}", "może {}", "belki {}", "может быть {}",
    "или {}", "也许 {}", "可能 {}", "たぶん {}", "아마 {}", "squared", "cubed", "factorial", "halves", "thirds",
    "quarters",
    "hundredths", "tenths", "times {}", "plus {}", "minus one", "choose two", "mod three", "always", "sometimes",
    "perhaps", "versus", "yes", "guess", "this is it", "differs", "fails", "minus", "plus", "less", "others", "us",
    "dubious", "errors", "no", "not", "thousand", "dozen {}", "(or {})", "({})", "[{}]", "? {}!", "per mille",
    "degrees or {}", "cm or {}", "true or false", "TODO", "to be checked", "assuming {} fails",
]  # fmt: skip


def hedges() -> list[tuple[str, str]]:
    """(gold answer, hedged answer), every one of them worth nothing."""
    pairs = []
    for (gold, right, other, _), sign in itertools.product(VALUES, SIGNS):
        pairs.append((gold, f"{right}{sign} {other}"))
        if sign not in ("-", "|"):
            pairs.append((gold, f"{other} {sign} {right}"))
    for (gold, right, _, word), doubt in itertools.product(VALUES, DOUBT):
        text = doubt.format(word)
        pairs += [(gold, f"{right}\\text{{ {text}}}"), (gold, f"{right} {text}"), (gold, f"\\text{{{text} }}{right}")]
    return list(dict.fromkeys(pairs))


def paid(pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Pairs whose answer is rewarded, with the rule."""
    found = []
    for gold, answer in pairs:
        reward, _, _, rule = judge(f"Hence $\\boxed{{{answer}}}$.", gold)
        if reward:
            found.append((gold, answer, rule))
    return found


def test_there_are_enough() -> None:
    assert len(hedges()) > 3000


@pytest.mark.parametrize("gold", dict.fromkeys(gold for gold, *_ in VALUES))
def test_no_hedge_is_paid(gold: str) -> None:
    assert not paid([pair for pair in hedges() if pair[0] == gold])
