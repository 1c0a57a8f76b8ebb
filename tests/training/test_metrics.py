"""Accuracy numbers against values computed by hand, and their independence of how samples are spread over ranks."""

import itertools
import math

import pytest
import torch

from sppo_lit.training.metrics import (
    NO_ANSWER,
    AccuracyAtK,
    answer_id,
    avg_at_k,
    brier,
    confidence_interval,
    explained_variance,
    maj_at_k,
    pass_at_k,
)
from sppo_lit.types import Problem, Scored, Verdict


def scored(
    key: str, sample: int, answer: str | None, gold: str = "7", tokens: int = 10, finished: bool = True
) -> Scored:
    right = answer == gold
    verdict = Verdict(float(right), "correct" if right else "wrong" if answer else "no_answer", answer)
    return Scored(Problem(key, "p", "7"), f"text {answer}", tokens, verdict, sample, finished)


RESPONSES = [
    *[scored("a", i, x) for i, x in enumerate(["7", "7", "3", None])],  # avg .5, maj 1
    *[scored("b", i, x) for i, x in enumerate(["1", "1", " 1 ", "7"])],  # avg .25, maj 0
    *[scored("c", i, x) for i, x in enumerate(["7", "2", None, None])],  # avg .25, maj .5: two tied answers
    *[scored("d", i, None, tokens=50, finished=False) for i in range(4)],  # nothing
    scored("a", -1, "7"),
    scored("b", -1, "7"),
    scored("c", -1, "5"),
    scored("d", -1, None),
]
EXPECTED = {
    "problems": 4,
    "k": 4,
    "greedy": 0.5,
    "avg_at_k": 0.25,
    "pass_at_k": 0.75,
    "maj_at_k": (1 + 0 + 0.5 + 0) / 4,
    "length": (4 * 50 + 16 * 10) / 20,
    "truncation_rate": 4 / 20,
}


def test_pass_at_k_is_the_mean_over_all_subsets():
    correct = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    for k in range(1, 6):
        for row, value in zip(correct, pass_at_k(correct, k), strict=True):
            subsets = list(itertools.combinations(row.tolist(), k))
            assert value.item() == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
    torch.testing.assert_close(pass_at_k(correct, 1), avg_at_k(correct))
    with pytest.raises(ValueError, match="pass@6 needs 1 to 5"):
        pass_at_k(correct, 6)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        ([5, 5, 6, 8], [1, 1, 0, 0], 1.0),
        ([5, 6, 6, 8], [1, 0, 0, 0], 0.0),
        ([5, 5, 6, 6], [1, 1, 0, 0], 0.5),
        ([5, 6, 8], [1, 0, 0], 1 / 3),
        ([NO_ANSWER, NO_ANSWER, NO_ANSWER, 5], [0, 0, 0, 1], 1.0),
        ([NO_ANSWER, NO_ANSWER], [0, 0], 0.0),
    ],
)
def test_majority_vote(answers, correct, expected):
    assert maj_at_k(torch.tensor([correct]), torch.tensor([answers])).item() == pytest.approx(expected)


def test_same_answer_written_differently_is_one_vote():
    assert answer_id(r"\dfrac{1}{2}") == answer_id(r" \frac{1}{2}. ") == answer_id(r"$\left\frac{1}{2}$")
    assert answer_id("12") != answer_id("1.2")
    assert answer_id(None) == answer_id("  ") == NO_ANSWER


def test_interval():
    greedy = torch.tensor([1.0] * 30 + [0.0] * 70)
    low, high = 0.21895, 0.39585  # Wilson's interval of 30 of 100
    assert confidence_interval(greedy) == pytest.approx((high - low) / 2, abs=1e-4)
    assert confidence_interval(torch.ones(50)) > 0.03, "never without width"
    rates = torch.tensor([0.0, 0.5, 1.0, 0.5])
    assert confidence_interval(rates) == pytest.approx(1.96 * rates.std().item() / 2, abs=1e-4)
    repeated = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).repeat(20, 1)
    assert confidence_interval(avg_at_k(repeated)) == pytest.approx(confidence_interval(repeated[:, 0])), (
        "equal samples of a problem carry no more information than one"
    )
    assert math.isnan(confidence_interval(torch.zeros(0)))


def test_numbers_by_hand():
    metric = AccuracyAtK()
    metric.update(RESPONSES)
    result = metric.compute()
    for name, value in EXPECTED.items():
        assert result[name] == pytest.approx(value), name
    assert set(result) == {*EXPECTED, "greedy_ci", "avg_at_k_ci"}


def test_two_ranks_give_the_numbers_of_one():
    """Samples of one problem on both ranks, one response on both, one rank that starts empty."""
    ranks = [AccuracyAtK(), AccuracyAtK(), AccuracyAtK()]
    ranks[0].update(RESPONSES[1::2])
    ranks[1].update(RESPONSES[::2])
    ranks[1].update(RESPONSES[1:2])
    both = AccuracyAtK()
    for rank in ranks:
        both.rows.append(torch.cat(rank.rows))
    one = AccuracyAtK()
    one.update(RESPONSES)
    assert both.compute() == one.compute()


def _on_rank(rank: int, file: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}", world_size=2, rank=rank)
    metric = AccuracyAtK()
    results = []
    for shares in ((RESPONSES, []), (RESPONSES[::2], RESPONSES[1::2]), (RESPONSES[:7], RESPONSES[5:])):
        metric = AccuracyAtK()
        metric.update(shares[rank])
        results.append(metric.compute())
    torch.distributed.destroy_process_group()
    for result in results:
        for name, value in EXPECTED.items():
            assert result[name] == pytest.approx(value), name


def test_samples_spread_over_two_processes_give_the_numbers_by_hand(tmp_path):
    """One rank without problems, samples of a problem on both, some responses on both."""
    torch.multiprocessing.spawn(_on_rank, (str(tmp_path / "meet"),), nprocs=2)


def test_without_samples_or_greedy():
    metric = AccuracyAtK()
    assert metric.compute() == {}
    metric.update([scored("a", -1, "7")])
    assert metric.compute()["greedy"] == 1 and "avg_at_k" not in metric.compute()
    metric.reset()
    metric.update([scored("a", 0, "7"), scored("a", 1, "3")])
    assert metric.compute()["avg_at_k"] == 0.5 and "greedy" not in metric.compute()


def test_critic_quality():
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert explained_variance(labels, labels) == 1 and brier(labels, labels) == 0
    assert explained_variance(torch.full((4,), 0.5), labels) == 0 and brier(torch.full((4,), 0.5), labels) == 0.25
    assert explained_variance(torch.tensor([0.75, 0.25, 0.75, 0.25]), labels) == pytest.approx(0.75)
    assert explained_variance(labels, torch.ones(4)).isnan()
