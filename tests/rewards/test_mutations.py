"""A fuzzer: gold answers changed in value by one step, none of which may be accepted."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards.test_answers import read_cases

from sppo_lit.rewards.math.answers import gold_error, judge
from sppo_lit.rewards.math.latex import normalize
from sppo_lit.rewards.math.numbers import parse_base

GOLDS = sorted({gold for gold, _, equal in read_cases() if equal})
FUNCTIONS = {"sin": "cos", "cos": "tan", "tan": "sin", "ln": "sin", "log": "cos", "sqrt": "sin", "pi": "alpha"}
TAILS = [
    "+1", "-1", r"\cdot 2", "/2", "^2", "'", "_1", "_{12}", r"\%x", "x", "*", "+", "-", "/", "^", "_",
    r"\cdot", r"\text{ or 77}", r"\text{ perhaps}", r", 77", ";77", r"\approx 1077", r"\ne 77", r"\text{ false}",
    r"\frac{dy}{dx}", r"+\frac{dy}{dx}", r"\to 77", "=77", "=-77", r"\cdot\frac{1}{3}", "i", "e", 
    r"(1+10^{-40})", r"\tanh 40+x", r"\ldots", r"\text{ squared}", r"\text{ thirds}", "^T", r"\mid 77", "?",
    "[77]", r"\text{ and not}",
]  # fmt: skip


def digit(text: str, at: random.Random) -> str:
    """One digit replaced by another."""
    places = [m.start() for m in re.finditer(r"\d", text)]
    if not places:
        return text
    i = at.choice(places)
    return text[:i] + at.choice([d for d in "123456789" if d != text[i]]) + text[i + 1 :]


def letter(text: str, at: random.Random) -> str:
    """One variable replaced by another letter."""
    places = [m.start(1) for m in re.finditer(r"(?<![A-Za-z\\])([A-Zabcdf-hj-z])(?![A-Za-z{])", text)]
    if not places:
        return text
    i = at.choice(places)
    return text[:i] + at.choice([c for c in "abcdkmnpqtuvwxyzABCKLMN" if c != text[i]]) + text[i + 1 :]


def sign(text: str, at: random.Random) -> str:
    """The sign changed, or a plus and a minus exchanged."""
    places = [m.start() for m in re.finditer(r"[+-]", text)]
    if not places:
        return "-" + text
    i = at.choice(places)
    return text[:i] + ("-" if text[i] == "+" else "+") + text[i + 1 :]


def function(text: str, at: random.Random) -> str:
    """A function or constant replaced by another."""
    found = [m for m in re.finditer(r"\\([a-z]+)", text) if m[1] in FUNCTIONS]
    if not found:
        return text
    m = at.choice(found)
    return f"{text[: m.start(1)]}{FUNCTIONS[m[1]]} {text[m.end(1) :]}"


def tail(text: str, at: random.Random) -> str:
    """Something that changes the value, or makes no sense, appended."""
    return text + at.choice(TAILS)


def part(text: str, at: random.Random) -> str:
    """One term, factor, item or index dropped."""
    pieces = list(re.finditer(r"(?:[+,;-]|_\{?|\^\{?|\\cdot ?)[0-9a-zA-Z]+\}?", text))
    if not pieces:
        return text
    m = at.choice(pieces)
    return text[: m.start()] + text[m.end() :]


DATA: list[str] = []
MUTATIONS = [digit, letter, sign, function, tail, part]


def harmless(gold: str, changed: str) -> bool:
    """Whether a change may leave the value alone: 1^2, 2!, -0, 0 x, spacing, a base left out, a part of a ray."""
    bare = [re.sub(r"\\[!,;: ]|[{}\s$]|\\left|\\right", "", s) for s in (gold, changed)]
    added = changed[len(gold) :] if changed.startswith(gold) else ""
    return (
        bare[0].casefold() == bare[1].casefold()
        or "\\gcd" in gold
        or "\\approx" in gold
        or (re.search(r"[1-9a-zA-Z]", re.sub(r"\\[a-z]+(?:\{\w*matrix\})?", "", gold)) is None)
        or (bool(added) and bare[0][-1:] in ("0", "1", "2"))
        or (added == "!" and any(judge(rf"\boxed{{{n}}}", gold)[0] for n in (1, 2)))
        or ("\\infty" in gold and "cup" in added)
        or ("matrix" in gold and "T" in added)
        or (re.search(r"(?<!\w)0", gold) is not None and changed == gold.replace("0", "-0", 1))
        or parse_base(normalize(gold)) is not None
        or re.search(r"\d ?\\d?frac", gold) is not None
    )


def accepted(gold: str, seed: int) -> tuple[str, str] | None:
    """(changed answer, rule) if the change made from `seed` is accepted."""
    at = random.Random(seed)
    changed = at.choice(MUTATIONS)(gold, at)
    if harmless(gold, changed) or gold_error(gold):
        return None
    reward, _, _, rule = judge(f"\\boxed{{{changed}}}", gold)
    return (changed, rule) if reward else None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(GOLDS), st.integers(0, 2**32))
def test_changed_golds_of_the_table_are_not_accepted(gold: str, seed: int) -> None:
    assert accepted(gold, seed) is None


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, derandomize=True)
@given(st.data())
def test_changed_golds_of_the_data_sets_are_not_accepted(datasets_dir: Path, data: st.DataObject) -> None:
    from rewards.golds import read_golds

    if not DATA:
        DATA.extend(sorted({gold for _, _, gold in read_golds(datasets_dir) if not gold.isdigit()}))
    assert accepted(data.draw(st.sampled_from(DATA)), data.draw(st.integers(0, 2**32))) is None
