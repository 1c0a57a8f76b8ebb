"""The tail effect on responses made so that its place is known, and the figure."""

import math

import pytest
import torch
from evaluations import evaluation, line, write

from sppo_lit.errors import InputError
from sppo_lit.study.figures.tail import Responses, clustered_mean, draw, measure, stays_above


def flat_then_apart(at: float, tokens: int = 201, responses: int = 40) -> Responses:
    """V is the same noise for all up to `at`, then 1 for correct and 0 for incorrect ones."""
    torch.manual_seed(0)
    correct = torch.arange(responses) % 2
    values = []
    for right in correct:
        v = 0.5 + 0.01 * torch.randn(tokens, dtype=torch.float64)
        v[math.ceil(at * (tokens - 1)) :] += 0.4 if right else -0.4
        values.append(v)
    zeros = torch.zeros(responses, dtype=torch.int64)
    return Responses(values, correct, torch.arange(responses) // 2, zeros)


@pytest.mark.parametrize("at", [0.5, 0.9])
def test_the_place_of_separation_is_found(at):
    found = measure(flat_then_apart(at))
    assert found["separates_at"] == pytest.approx(at, abs=0.011)
    assert found["tokens_before"] + found["tokens_after"] == pytest.approx(201)
    assert found["auroc_last"] == 1 and 0.2 < found["auroc_first"] < 0.75
    assert found["relative"]["difference"][-1] > 20
    assert found["last"]["position"][-1] == 0 and found["last"]["correct"][-1] == pytest.approx(0.9, abs=0.01)


def test_responses_of_any_length_end_together():
    values = [torch.linspace(0, 1, n, dtype=torch.float64) * sign for n, sign in ((1, 1), (3, -1), (9, 1), (40, -1))]
    correct, zeros = torch.tensor([1, 0, 1, 0]), torch.zeros(4, dtype=torch.int64)
    found = measure(Responses(values, correct, torch.arange(4), zeros))
    assert found["relative"]["incorrect"][-1] == -1 and found["tokens"] == 53 / 4
    last = found["last"]
    assert last["position"] == list(range(-39, 1)) and last["incorrect"][-2] == pytest.approx((-0.5 - 38 / 39) / 2)
    assert last["correct"][-2] == pytest.approx(7 / 8) and math.isnan(last["correct"][0])


def test_difficulty_is_no_credit():
    """A critic that knows only the level of a problem separates nothing within levels."""
    level = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    correct = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    values = [torch.full((10,), 0.75 - 0.5 * int(x), dtype=torch.float64) for x in level]
    found = measure(Responses(values, correct, torch.arange(8), level))
    assert found["auroc_last"] == 0.5 and found["separates_at"] is None and found["tokens_after"] is None
    zeros = torch.zeros_like(level)
    assert measure(Responses(values, correct, torch.arange(8), zeros))["auroc_last"] == 0.75


def test_separated_means_for_good():
    assert stays_above([0.5, 0.9, 0.6, 0.8, 0.9], 0.75) == 3
    assert stays_above([0.9, 0.9], 0.75) == 0 and stays_above([0.9, 0.7], 0.75) is None
    assert stays_above([math.nan, 0.8], 0.75) == 1


def test_responses_to_one_problem_count_as_one():
    values = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    mean, once = clustered_mean(values, torch.arange(3))
    assert mean == pytest.approx(0.5) and once == pytest.approx(1.96 * values.std().item() / 3**0.5, abs=1e-4)
    _, repeated = clustered_mean(values.repeat(5), torch.arange(3).repeat(5))
    assert repeated == pytest.approx(once)
    assert math.isnan(clustered_mean(values, torch.zeros(3))[1]) and math.isnan(clustered_mean(values[:0], values)[0])


def test_figure(tmp_path):
    pytest.importorskip("matplotlib")
    source = evaluation(tmp_path / "ppo" / "version_1" / "evaluations" / "math500-iteration-9.jsonl")
    numbers = draw([source], tmp_path / "tail.png")
    (found,) = numbers.values()
    assert list(numbers) == ["ppo/version_1 · math500-iteration-9"]
    assert 0.7 < found["separates_at"] < 0.9 and found["responses"] == 120 * 16
    assert (tmp_path / "tail.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "tail.svg").is_file()


def test_bad_input_is_one_line(tmp_path):
    scalar = write(tmp_path / "a.jsonl", [line("p", 0, True), line("p", 1, False)])
    with pytest.raises(InputError, match="no critic's values along the responses; evaluate a run of a token-level"):
        draw([scalar], tmp_path / "x.png")
    right = write(tmp_path / "b.jsonl", [line("p", 0, True, values=[0.1, 0.2])])
    with pytest.raises(InputError, match="needs correct and incorrect responses"):
        draw([right], tmp_path / "x.png")
