"""Numbers of a critic's calibration against values from their definitions, and the figure."""

import math

import numpy as np
import pytest
import torch
from evaluations import evaluation, line, write

from sppo_lit.errors import InputError
from sppo_lit.study.figures.calibration import draw, leave_one_out, measure, reliability
from sppo_lit.training.metrics import auroc

VALUES = torch.tensor([0.9, 0.6, 0.6, 0.2, 0.35], dtype=torch.float64)
CORRECT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]])


def ranks(x):
    """Average ranks."""
    return np.array([np.mean(np.flatnonzero(np.sort(x) == v)) for v in x])


def pairs(scores, labels):
    won = [(s > t) + 0.5 * (s == t) for s, a in zip(scores, labels) for t, b in zip(scores, labels) if a > b]  # noqa: B905
    return np.mean(won)


def test_numbers_from_their_definitions():
    found = measure(VALUES, CORRECT, [None] * 5)
    v, success = VALUES.numpy(), CORRECT.double().mean(1).numpy()  # success: 1, .75, .25, 0, .5
    assert found["base_rate"] == 0.5 and found["k"] == 4 and found["problems"] == 5
    assert found["pearson"] == pytest.approx(np.corrcoef(v, success)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks(v), ranks(success))[0, 1])
    samples, labels = np.repeat(v, 4), CORRECT.flatten().numpy()
    assert found["brier"] == pytest.approx(np.mean((samples - labels) ** 2))
    assert found["brier_base_rate"] == pytest.approx(0.25)
    assert found["brier_skill"] == pytest.approx(1 - np.mean((samples - labels) ** 2) / 0.25)
    assert found["auroc"] == pytest.approx(pairs(samples, labels))
    # Bins of a tenth: .2 (0), .35 (.5), .6 and .6 (.5), .9 (1).
    assert found["reliability"] == [
        pytest.approx(bin) for bin in ([0.2, 0, 1], [0.35, 0.5, 1], [0.6, 0.5, 2], [0.9, 1, 1])
    ]
    assert found["ece"] == pytest.approx((0.2 + 0.15 + 2 * 0.1 + 0.1) / 5)
    assert "level_pearson" not in found


def test_level_alone_is_the_mean_of_the_other_problems_of_the_level():
    success = CORRECT.double().mean(1)
    others = leave_one_out(success, torch.tensor([0, 0, 1, 1, 1]))
    torch.testing.assert_close(others, torch.tensor([0.75, 1.0, 0.25, 0.375, 0.125], dtype=torch.float64))
    assert leave_one_out(success, torch.tensor([0, 1, 1, 1, 1]))[0] == pytest.approx(1.5 / 4), "alone: all the others"
    found = measure(VALUES, CORRECT, [1, 1, 3, 3, 3])
    assert found["level_pearson"] == pytest.approx(np.corrcoef(others, success)[0, 1])
    level_brier = np.mean((np.repeat(others.numpy(), 4) - CORRECT.flatten().numpy()) ** 2)
    assert found["level_brier"] == pytest.approx(level_brier)
    assert found["brier_skill_over_level"] == pytest.approx(1 - found["brier"] / level_brier)
    v = VALUES - torch.tensor([0.75, 0.75, *[1.15 / 3] * 3])
    s = success - torch.tensor([0.875, 0.875, 0.25, 0.25, 0.25])
    assert found["pearson_within_levels"] == pytest.approx(np.corrcoef(v, s)[0, 1])


def test_auroc_counts_pairs_of_a_stratum_and_ties_half():
    scores, labels = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.3]), torch.tensor([0, 1, 0, 1, 1])
    assert auroc(scores, labels) == pytest.approx(pairs(scores.tolist(), labels.tolist()))
    assert auroc(scores, labels, torch.tensor([0, 0, 1, 1, 1])) == pytest.approx((1 + 1 + 0) / 3)
    assert math.isnan(auroc(scores, torch.ones(5)))


def test_extremes():
    perfect = torch.tensor([[1, 1], [0, 0]])
    found = measure(torch.tensor([1.0, 0.0]), perfect, [1, 1])
    assert (found["brier"], found["ece"], found["auroc"], found["brier_skill"]) == (0, 0, 1, 1)
    constant = measure(torch.tensor([0.5, 0.5]), perfect, [1, 1])
    assert math.isnan(constant["pearson"]) and constant["auroc"] == 0.5 and constant["brier_skill"] == 0
    outside = measure(torch.tensor([1.5, -0.5]), perfect, [1, 1])  # of a critic trained on squared errors
    assert outside["brier"] == 0 and outside["pearson"] == pytest.approx(1)
    assert reliability(torch.tensor([1.0]), torch.tensor([1.0])) == [(1.0, 1.0, 1)]


def test_figure_of_a_good_and_a_poor_critic(tmp_path):
    pytest.importorskip("matplotlib")
    good = evaluation(tmp_path / "run" / "version_0" / "evaluations" / "math500-iteration-9.jsonl", noise=0.05)
    poor = evaluation(tmp_path / "small.jsonl", noise=0.4, seed=2)
    numbers = draw([good.parent.parent, poor], tmp_path / "figures" / "calibration.png")
    assert list(numbers) == ["run/version_0", "small"]
    a, b = numbers.values()
    assert a["k"] == b["k"] == 16 and a["problems"] == 120
    assert a["pearson"] > 0.9 > b["pearson"] and a["brier"] < b["brier"] and a["level_pearson"] < a["pearson"]
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert (tmp_path / "figures" / f"calibration.{suffix}").read_bytes().startswith(start)


def test_bad_input_is_one_line(tmp_path):
    out = tmp_path / "x.png"
    with pytest.raises(InputError, match=r"nothing: no such file, and no run folder"):
        draw([tmp_path / "nothing"], out)
    without = write(tmp_path / "a.jsonl", [line("p", 0, True, value=None)])
    with pytest.raises(InputError, match=r"no critic's values in it; evaluate with --model.evaluation.values true"):
        draw([without], out)
    other = write(tmp_path / "b.jsonl", [line("p", 0, True), {"question": "x"}])
    with pytest.raises(InputError, match=r"b\.jsonl, line 2: no response of an evaluation"):
        draw([other], out)
    assert not out.exists()


def test_evaluations_of_the_same_name_are_told_apart(tmp_path):
    sources = [
        evaluation(tmp_path / seed / "run" / "version_0" / "evaluations" / "a-iteration-1.jsonl", problems=8)
        for seed in ("seed-1", "seed-2")
    ]
    folders = [source.parents[1] for source in sources]
    assert list(draw(folders, tmp_path / "c.png")) == ["seed-1/run/version_0", "seed-2/run/version_0"]
    assert list(draw(folders[:1], tmp_path / "c.png")) == ["run/version_0"]
    assert len(draw(sources, tmp_path / "c.png")) == 2
    with pytest.raises(InputError, match="nowhere"):
        draw([tmp_path / "nowhere"], tmp_path / "c.png")
