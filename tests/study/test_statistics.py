"""Statistics over few seeds against plain numbers, and what a study's report makes of them."""

from __future__ import annotations

import csv
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sppo_lit.cli.main import main
from sppo_lit.study.figures import comparison
from sppo_lit.study.figures.efficiency import first_reaching, mean_curve
from sppo_lit.study.report import write_report
from sppo_lit.study.runs import find_runs
from sppo_lit.study.statistics import (
    ends,
    further_run,
    interquartile_mean,
    interval,
    pooled_deviation,
    probability_of_improvement,
    quantile_of_t,
)
from sppo_lit.utils.console import console

pytestmark = pytest.mark.filterwarnings("ignore")


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([8, 1, 7, 2, 6, 3, 5, 4]) == 4.5
    assert interquartile_mean([9, 1, 2, 3, -50]) == 2, "one of five at each end"
    assert interquartile_mean([1, 2, 6]) == 3 and interquartile_mean([4]) == 4


def test_probability_of_improvement_counts_pairs() -> None:
    assert probability_of_improvement([1, 3], [2, 3]) == (0 + 0 + 1 + 0.5) / 4
    assert probability_of_improvement([5, 6], [1]) == 1 and probability_of_improvement([1], [1]) == 0.5


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of the mean of 20 normal numbers; the bootstrap is a little too narrow for few, as is known."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        estimate, low, high = interval(lambda v: float(np.mean(v)), rng.normal(size=20).tolist(), resamples=300)
        assert low <= estimate <= high
        hits += low <= 0 <= high
    assert 0.87 <= hits / 200 <= 0.98


def test_an_interval_is_the_same_every_time_and_unknown_for_one_run() -> None:
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    assert interval(interquartile_mean, values) == interval(interquartile_mean, values)
    estimate, low, high = interval(interquartile_mean, [0.7])
    assert estimate == 0.7 and math.isnan(low) and math.isnan(high)
    assert ends(np.array([1.0, 2.0, math.inf])) == (1.0, math.inf), "a censored cost"


def run(root: Path, name: str, algorithm: str, seed: int, points: list[tuple[float, float]], sampling: float) -> None:
    """A run of one iteration per point (seconds, accuracy), of which `sampling` seconds are so and one the critic's."""
    folder = root / f"seed-{seed}" / name / "version_0"
    folder.mkdir(parents=True)
    config = {"run_name": name, "seed_everything": seed, "model": {"algorithm": algorithm}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    costs = [f"clock/{cost}" for cost in ("seconds", "tokens", "sequences")]
    phases = [f"time/{phase}" for phase in ("rollout", "verify", "values", "critic", "update", "iteration")]
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["step", *costs, *phases, "rollout/accuracy", "val/accuracy"])
        table.writeheader()
        table.writerow({"step": 0, "val/accuracy": points[0][1]})
        for i, ((before, _), (seconds, accuracy)) in enumerate(pairwise(points), start=1):
            spent = seconds - before
            used = dict(zip(costs, (seconds, 10 * i, 2 * i), strict=True))
            by_phase = (sampling, 0, 0.25, 0.75, spent - sampling - 1, spent)
            table.writerow({"step": i, "rollout/accuracy": 0.5, **used, **dict(zip(phases, by_phase, strict=True))})
            table.writerow({"step": i, "val/accuracy": accuracy})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """SPPO gets in 10 s where GRPO ends in 30 s, whose sampling takes most of the time; PPO never gets there."""
    root = tmp_path / "study"
    for seed, shift in ((1, 0.02), (2, -0.02), (3, 0.01)):
        points = [(0.0, 0.2), (10.0, 0.3 + shift), (20.0, 0.4 + shift), (30.0, 0.5 + shift)]
        run(root, "grpo", "grpo", seed, points, sampling=8)
        run(root, "sppo", "sppo", seed, [(0.0, 0.2), (10.0, 0.55 + shift), (20.0, 0.6 + shift)], sampling=2)
    run(root, "ppo", "ppo", 1, [(0.0, 0.2), (10.0, 0.25), (20.0, 0.3)], sampling=2)
    plan = {"title": "A study", "baseline": "grpo", "seeds": [1, 2, 3], "cells": {"sppo": {}, "grpo": {}, "ppo": {}}}
    (root / "study.json").write_text(json.dumps(plan))
    return root


def test_scores_and_the_probability_of_improvement(study: Path) -> None:
    rows = comparison.scores(find_runs([study]), "grpo")
    estimate, low, high = rows["sppo"]["final"]
    assert estimate == pytest.approx(np.mean([0.62, 0.58, 0.61])) and 0.58 <= low < estimate < high <= 0.62
    assert rows["sppo"]["improvement"][0] == 1 and rows["grpo"]["improvement"] is None
    assert rows["ppo"]["improvement"] == (0, 0, 0), "one run against three"
    assert math.isnan(rows["ppo"]["final"][1])
    mean, low, high = rows["sppo"]["another_seed"]
    half = 2.776 * 0.0208 * math.sqrt(1 + 1 / 3)  # the deviation of both cells with several seeds, 4 degrees of freedom
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=1e-3)
    assert rows["ppo"]["another_seed"][1] == pytest.approx(0.3 - 2.776 * 0.0208 * math.sqrt(2), abs=1e-3)
    assert rows["sppo"]["difference"] == pytest.approx((0.1, 0.1, 0.1)), "with every seed the same"
    assert rows["ppo"]["difference"][0] == pytest.approx(0.3 - 0.52), "of seed 1, which both have"
    assert rows["sppo"]["over_training"][0] == pytest.approx(
        np.mean([(0.5 * (0.2 + a) + 0.5 * (a + b)) / 2 for a, b in ((0.57, 0.62), (0.53, 0.58), (0.56, 0.61))])
    )


def test_seeds_that_agree_by_chance_do_not_promise_that_others_do() -> None:
    deviation, freedom = pooled_deviation([[0.5, 0.5], [0.3, 0.4, 0.5], [0.1]])
    assert freedom == 3 and deviation == pytest.approx(math.sqrt(0.02 / 3))
    _, low, high = further_run([0.5, 0.5], deviation, freedom)
    assert high - low == pytest.approx(2 * 3.182 * deviation * math.sqrt(1.5))
    assert math.isnan(further_run([0.5], *pooled_deviation([[0.5], [0.2]]))[1])
    assert [round(quantile_of_t(freedom), 2) for freedom in (15, 16, 60)] == [2.13, 2.12, 2.0]


def test_costs_to_fixed_scores_know_who_never_got_there(study: Path) -> None:
    table = comparison.costs_to_scores(find_runs([study]), "grpo")
    half = table["seconds to 35.2%"]
    target = 0.2 + 0.5 * (np.mean([0.52, 0.48, 0.51]) - 0.2)
    needed = [10 * (target - 0.2) / gain for gain in (0.37, 0.33, 0.36)]
    assert half["sppo"][0] == pytest.approx(sorted(needed)[1]) and half["sppo reached"] == "3 of 3"
    assert half["ppo"][0] == math.inf and half["ppo reached"] == "0 of 1"
    best = table["seconds to 50.3%"]
    assert best["grpo reached"] == "2 of 3" and best["grpo"][2] == math.inf, "one seed ends below the mean"


def test_speedup_with_its_interval_agrees_with_the_curves(study: Path) -> None:
    runs = find_runs([study])
    curves = {
        label: [comparison.curve(r, "seconds") for r in group] for label, group in comparison.grouped(runs).items()
    }
    gains = comparison.speedups(curves, "grpo")
    grid, mean, _ = mean_curve(curves["grpo"])
    target = float(mean.max())
    own, needed = first_reaching(grid, mean, target), first_reaching(*mean_curve(curves["sppo"])[:2], target)
    assert own and needed
    estimate, low, high = gains["sppo"]["speedup"]
    assert estimate == pytest.approx(own / needed) and 2 < low <= estimate <= high
    assert gains["sppo"]["reached"] == 1
    assert gains["ppo"]["speedup"][0] == 0 and gains["ppo"]["reached"] == 0 and "grpo" not in gains


def test_where_the_time_goes(study: Path) -> None:
    shares = comparison.phase_shares(find_runs([study]))
    assert shares["grpo"] == pytest.approx(
        {"sampling": 0.8, "critic": 0.1, "learning": 0.1, "verifying": 0, "other": 0}, abs=1e-9
    )
    assert shares["sppo"]["sampling"] == pytest.approx(0.2)


def test_dearer_sampling_moves_every_evaluation(study: Path) -> None:
    runs = find_runs([study])
    grpo = next(r for r in runs if r.label == "grpo")
    assert comparison.retimed(grpo, 1)[0].tolist() == [0, 10, 20, 30]
    assert comparison.retimed(grpo, 3)[0].tolist() == [0, 26, 52, 78]
    table = comparison.sampling_costs(runs, "grpo")
    assert list(table) == ["sampling × 1", "sampling × 3", "sampling × 10"]
    assert [row["at_seconds"] for row in table.values()] == [20, 28, 56]
    factors = [row["sppo speedup"][0] for row in table.values()]
    assert factors[0] < factors[1] < factors[2], "who samples less gains"
    assert table["sampling × 3"]["grpo"][0] < table["sampling × 1"]["grpo"][0]


def test_they_are_in_the_report_and_on_the_command_line(
    study: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(console, "_width", 160)  # in 80 columns intervals take two lines
    page = write_report(study).read_text(encoding="utf-8")
    numbers = json.loads((study / "report" / "numbers.json").read_text())
    for name in ("aggregates", "sampling_cost"):
        assert (study / "report" / f"{name}.png").is_file() and f'src="{name}.png"' in page
    estimate, low, high = numbers["aggregates"]["against_the_baseline"]["sppo"]["faster"]
    assert low <= estimate <= high
    assert main(["figure", "aggregates", str(study), "--out", str(tmp_path / "a.png")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "60.3% [58.0%, 62.0%]" in shown and "∞" in shown and "2 of 3" in shown


def test_studies_stand_beside_each_other_with_the_cells_that_one_wants(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "studies.png"
    shutil.copytree(study, other)
    (other / "study.json").write_text((study / "study.json").read_text().replace("A study", "Another"))
    assert main(["figure", "studies", str(study), str(other), "--only", "sppo,grpo", "--out", str(out)]) == 0
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert [[*rows] for rows in numbers.values()] == [["sppo", "grpo"]] * 2 and [*numbers] == ["A study", "Another"]
    assert numbers["Another"]["sppo"]["difference"][0] == pytest.approx(0.1)
    capsys.readouterr()
    assert main(["figure", "studies", str(study), "--only", "trpo,spo"]) == 2
    assert "no run is named trpo or spo; it has sppo, grpo, ppo" in capsys.readouterr().err.replace("\n", " ")
    assert main(["figure", "tail", str(study), "--only", "ppo"]) == 2
    assert "--only: figure tail reads evaluations" in capsys.readouterr().err


def test_any_cell_can_be_the_baseline_of_a_figure(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "aggregates.png"
    assert main(["figure", "aggregates", str(study), "--out", str(out), "--baseline", "sppo"]) == 0
    rows = json.loads(out.with_suffix(".json").read_text())["against_the_baseline"]
    assert [*rows] == ["grpo", "ppo"] and rows["grpo"]["difference"][0] == pytest.approx(-0.1)
    capsys.readouterr()
    assert main(["figure", "aggregates", str(study), "--baseline", "trpo"]) == 2
    assert "--baseline trpo: no run of that name; choose one of sppo, grpo, ppo" in capsys.readouterr().err
    assert main(["figure", "memory", str(study), "--baseline", "sppo"]) == 2
    assert "figure memory has none; efficiency, aggregates, sampling_cost have" in capsys.readouterr().err
