"""Extraction and equivalence: the table of hand-checked cases, and the policy around it."""

from pathlib import Path

import pytest

from sppo_lit.rewards.math.answers import equivalent, extract_answer, gold_error, judge, judge_exact, readable
from sppo_lit.rewards.shaping import overlong_penalty

CASES = Path(__file__).with_name("cases.txt")


def read_cases() -> list[tuple[str, str, bool]]:
    cases = []
    for line in CASES.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("# "):
            equal = " ~~ " in line
            gold, answer = line.split(" ~~ " if equal else " !! ")
            cases.append((gold, answer, equal))
    return cases


def test_the_table_is_as_large_as_it_claims() -> None:
    cases = read_cases()
    assert len(set(cases)) == len(cases) >= 400
    assert sum(not equal for _, _, equal in cases) >= 150


def test_hand_checked_cases() -> None:
    cases = read_cases()
    wrong = [(g, a, equal) for g, a, equal in cases if equivalent(g, a) != equal]
    false_positives = [(g, a) for g, a, equal in wrong if not equal]
    false_negatives = [(g, a) for g, a, equal in wrong if equal]
    assert not false_positives
    assert len(false_negatives) <= 0.01 * sum(equal for *_, equal in cases), false_negatives


def test_judging_agrees_with_the_table() -> None:
    for gold, answer, equal in read_cases():
        reward, reason, *_ = judge(f"Hence \\boxed{{{answer}}}.", gold)
        assert reward == float(equal) and (reason == "correct") == equal, (gold, answer, reason)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"so $\fbox{5}$", "5"),
        (r"\boxed{4} no, \boxed{5}", "5"),
        (r"<think>\boxed{4}</think> \boxed{5}", "5"),
        (r"<think>\boxed{5}</think> five", None),
        (r"\boxed{1}</think>\boxed{2}</think>\boxed{3}", "3"),
        (r"<think>\boxed{4} and so on", "4"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\fbox{5}}", "5"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"$\boxed 54$.", "54"),
        (r"\boxed5.", "5"),
        (r"\boxed \frac{1}{2} is it", r"\frac{1}{2}"),
        (r"\boxed\text{no}", r"\text{no}"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{ 5 }", "5"),
        ("\\boxed{\n5\n}", "5"),
        (r"write \boxed{ then \boxed{5}", "5"),
        (r"\boxed{5} and \boxed{", None),
        (r"\boxed{5} and \boxed{6", None),
        (r"\boxed{5} and \boxed{}", None),
        (r"\boxed{1\}", None),
        (r"\boxed", None),
        (r"\boxedanswer{5}", None),
        (r"boxed{5}", None),
        (r"The answer is 5.", None),
        (r"#### 5", None),
        (r"$5$", None),
        ("", None),
    ],
)
def test_extraction(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


def test_long_and_deep_responses_are_read_in_linear_time() -> None:
    assert extract_answer("\\boxed{" * 100_000) is None
    assert extract_answer("{" * 1_000_000 + "\\boxed{5}") == "5"
    assert extract_answer("\\" * 1_000_000 + "boxed{5}") == "5"
    assert extract_answer("\\boxed{1}" * 100_000 + "\\boxed{5}") == "5"


@pytest.mark.parametrize(
    ("response", "gold", "finished", "reason"),
    [
        (r"\boxed{5}", "5", True, "correct"),
        (r"\boxed{5} and on and on", "5", False, "correct"),
        (r"\boxed{6}", "5", True, "wrong"),
        ("5", "5", True, "no_answer"),
        ("5", "5", False, "truncated"),
        (r"\boxed{5", "5", False, "truncated"),
        (r"\boxed{x\frac}", r"x^2+1", True, "unparsable"),
        (r"\boxed{5}", "", True, "gold_unparsable"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1", True, "gold_unparsable"),
        (r"\boxed{x^2}", r"x^^2", True, "gold_unparsable"),
    ],
)
def test_reasons(response: str, gold: str, finished: bool, reason: str) -> None:
    reward, found, *_ = judge(response, gold, finished)
    assert (reward, found) == (float(reason == "correct"), reason)


def test_integers_never_need_sympy() -> None:
    for gold in ("5", "-17", "1,234", "27.0", r"\frac{3}{4}", "0.25", r"50\%", r"\$36", "(1,2)", "C", "8.7e8"):
        for answer in ("5", "-17", "1234", "27", "0.75", "1/4", "36", r"\text{C}", "(1, 2)", "12 \\text{ cm}", "yes"):
            assert judge_exact(f"\\boxed{{{answer}}}", gold) is not None, (gold, answer)


def test_gold_answers_of_the_data_sets_equal_themselves(datasets_dir: Path) -> None:
    """Every gold answer but the ones that are damaged in the file: cut off at their first closing brace, or empty."""
    from rewards.golds import read_golds

    total, exceptions = 0, []
    for file, row, gold in read_golds(datasets_dir):
        total += 1
        reward, reason, *_ = judge(f"\\boxed{{{gold}}}", gold)
        if reward != 1:
            exceptions.append((file, row, gold, reason))
    assert total > 35_000
    damaged = [e for e in exceptions if gold_error(e[2])]
    assert exceptions == damaged
    assert {(file, reason) for file, _, _, reason in damaged} <= {
        ("minerva.parquet", "gold_unparsable"),
        ("math.json", "gold_unparsable"),
    }
    intact = [e for e in exceptions if e[0] != "minerva.parquet"]
    assert len(intact) <= 0.001 * total, intact


def test_gold_answers_of_the_data_sets_can_be_read(datasets_dir: Path) -> None:
    from rewards.golds import read_golds

    golds = {gold for file, _, gold in read_golds(datasets_dir) if not gold_error(gold)}
    unread = [gold for gold in golds if not readable("", gold)]
    assert len(unread) <= 0.001 * len(golds), unread


def test_no_gold_of_minerva_as_read_is_beyond_matching(datasets_dir: Path) -> None:
    """68 of its rows are cut off in the file; the reader completes them."""
    from sppo_lit.problems.sources import open_problems

    problems = list(open_problems(str(datasets_dir / "benchmarks" / "minerva.parquet")).problems())
    assert len(problems) == 272
    assert not [p.answer for p in problems if judge(f"\\boxed{{{p.answer}}}", p.answer).reward != 1]


def test_overlong_penalty_is_daposs() -> None:
    lengths = [0, 15, 16, 18, 20, 25]
    assert [overlong_penalty(n, max_length=20, buffer=4) for n in lengths] == [0, 0, 0, -0.5, -1, -1]
    assert overlong_penalty(20, 20, 0) == 0 and overlong_penalty(21, 20, 0, scale=0.5) == -0.5
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(1, 10, 11)
