"""Properties that hold for any string a model can write."""

import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppo_lit.rewards.math.answers import extract_answer, judge_exact
from sppo_lit.rewards.math.equivalence import Comparison
from sppo_lit.rewards.math.latex import normalize

settings.register_profile("rewards", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rewards")

integers = st.integers(-(10**12), 10**12).map(str)
decimals = st.tuples(st.integers(-9999, 9999), st.integers(0, 99999)).map(lambda t: f"{t[0]}.{t[1]:05d}")
fractions = st.tuples(st.integers(-999, 999), st.integers(1, 999)).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}")
percents = st.integers(0, 999).map(lambda n: f"{n}\\%")
units = st.tuples(integers, st.sampled_from(["cm", "hours", "m^2"])).map(lambda t: f"{t[0]} \\text{{ {t[1]}}}")
words = st.text(string.ascii_letters, min_size=2, max_size=12).map(lambda w: f"\\text{{{w}}}")
atoms = st.one_of(integers, decimals, fractions, percents, units)
tuples = st.lists(atoms, min_size=2, max_size=4).map(lambda xs: f"({', '.join(xs)})")
sets = st.lists(atoms, min_size=2, max_size=4).map(lambda xs: f"\\{{{', '.join(xs)}\\}}")
answers = st.one_of(atoms, words, tuples, sets)
signs = [*"\\{}()[]$^_&%,.;:=<>|!/+-*0123456789abexπ√∞²½ \n\x00", "\\frac", "\\boxed{", "\\text{", "\\sqrt"]
latex = st.lists(
    st.sampled_from([*signs, "\\left(", "\\begin{pmatrix}", "\\\\", "\\cup", "</think>"]), max_size=60
).map("".join)
wrappings = st.sampled_from(
    ["{}", " {} ", "${}$", "\\({}\\)", "{{{}}}", "\\,{}\\,", "\\displaystyle {}", "{}.", "\n{}\n", "\\mathbf{{{}}}"]
)


def exact(gold: str, answer: str) -> bool | None:
    return Comparison().compare(gold, answer)


@given(answers)
def test_equivalence_is_reflexive(answer: str) -> None:
    assert exact(answer, answer) is True
    assert judge_exact(f"\\boxed{{{answer}}}", answer) == (1.0, "correct", answer.strip(), "text")


@given(answers, answers)
def test_exact_paths_are_symmetric(gold: str, answer: str) -> None:
    assert exact(gold, answer) == exact(answer, gold)


@given(answers, wrappings)
def test_whitespace_and_harmless_latex_do_not_matter(answer: str, wrapping: str) -> None:
    if "\\mathbf" not in wrapping or answer.lstrip("-").isdigit():
        assert exact(answer, wrapping.format(answer)) is True


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_different_integers_are_different_in_every_notation(x: int, y: int) -> None:
    notations = [f"{y}", f"{y:,}", f"{y}.0", f"\\frac{{{2 * y}}}{{2}}", f"{y:,}".replace(",", "{,}"), f"x={y}"]
    for notation in notations:
        assert exact(str(x), notation) is (x == y), notation


@given(st.fractions(-50, 50, max_denominator=60), st.fractions(-50, 50, max_denominator=60))
def test_fractions_compare_as_fractions(x, y) -> None:  # type: ignore[no-untyped-def]
    gold = f"\\frac{{{x.numerator}}}{{{x.denominator}}}"
    for k in (1, 3):
        assert exact(gold, f"\\frac{{{k * y.numerator}}}{{{k * y.denominator}}}") is (x == y)


@given(st.one_of(st.text(max_size=200), latex), st.one_of(answers, latex))
def test_never_raises(response: str, gold: str) -> None:
    extract_answer(response)
    extract_answer(f"\\boxed{{{response}}}")
    assert exact(gold, response) in (True, False, None)
    judge_exact(f"\\boxed{{{response}}}", gold)


@given(latex)
def test_normalizing_leaves_no_outer_blanks(text: str) -> None:
    assert normalize(text) == normalize(text).strip()


@given(st.text(max_size=100))
def test_without_a_box_there_is_no_answer(text: str) -> None:
    if "boxed" not in text and "fbox" not in text:
        assert extract_answer(text) is None
