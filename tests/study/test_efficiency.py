"""Comparisons from run folders: curves, speed-ups, memory, labels; the page of a study and `sppo figure`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from evaluations import evaluation

from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.cli.main import main
from sppo_lit.errors import InputError
from sppo_lit.study.archive import thinned, write_archive
from sppo_lit.study.figures import aggregates, calibration, efficiency, episodes, memory, sampling_cost, tail
from sppo_lit.study.protocols import PROTOCOLS
from sppo_lit.study.report import write_report
from sppo_lit.study.runs import LOOKS, SPARE, Run, find_runs, styles
from sppo_lit.study.tables import finite, tables
from sppo_lit.utils.console import console

pytestmark = pytest.mark.filterwarnings("ignore")


def run(
    root: Path, name: str, algorithm: str, seed: int, points: list[tuple[float, float]], memory: float = 100.0
) -> Path:
    """A run folder of one iteration per point (seconds, accuracy); an iteration samples 10 tokens in 2 sequences."""
    folder = root / f"seed-{seed}" / name / "version_0"
    folder.mkdir(parents=True)
    config = {"run_name": name, "seed_everything": seed, "model": {"algorithm": algorithm}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = ["step", "clock/seconds", "clock/tokens", "clock/sequences", "rollout/accuracy", "val/accuracy"]
    names += ["memory/rollout", "memory/update", "time/rollout", "time/iteration"]
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerow({"step": 0, "val/accuracy": points[0][1]})
        for i, (seconds, accuracy) in enumerate(points[1:], start=1):
            used = {"clock/seconds": seconds, "clock/tokens": 10 * i, "clock/sequences": 2 * i}
            peaks = {"memory/rollout": memory + i, "memory/update": 2 * memory}
            spent = {"time/rollout": 1.0, "time/iteration": 2.0}
            table.writerow({"step": i, "rollout/accuracy": 0.5, **used, **peaks, **spent})
            table.writerow({"step": i, "val/accuracy": accuracy})
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """SPPO gets where GRPO ends in a third of its time and a third of its sequences."""
    root = tmp_path / "study"
    for seed, shift in ((1, 0.02), (2, -0.02)):
        run(root, "grpo", "grpo", seed, [(0, 0.2), (10, 0.3 + shift), (20, 0.4 + shift), (30, 0.5 + shift)], 50)
        run(root, "sppo", "sppo", seed, [(0, 0.2), (10, 0.5 + shift), (20, 0.6 + shift)])
    run(root, "ppo", "ppo", 1, [(0, 0.2), (10, 0.25), (20, 0.3)])
    plan = {
        "title": "Three & more <cells>",
        "baseline": "grpo",
        "budget": {"seconds": 30},
        "seeds": [1, 2],
        "cells": {"sppo": {}, "grpo": {"data.problems_per_epoch": 32}, "ppo": {}},
    }
    (root / "study.json").write_text(json.dumps(plan))
    return root


FIGURES_OF_RUNS = (efficiency.draw, aggregates.draw, sampling_cost.draw, memory.draw, episodes.draw)


@pytest.mark.parametrize("draw", FIGURES_OF_RUNS, ids=lambda draw: draw.__module__.rpartition(".")[2])
def test_an_archive_draws_what_its_folders_draw(study: Path, tmp_path: Path, draw: Any) -> None:
    def numbers(source: Path) -> Any:
        text = json.dumps(finite(draw([source], tmp_path / "figure.png")))
        return json.loads(text, parse_float=lambda number: round(float(number), 5))

    write_archive([study], tmp_path / "study.json")
    assert numbers(tmp_path / "study.json") == numbers(study)


def test_archives_of_other_seeds_join_a_study(study: Path, tmp_path: Path) -> None:
    plan = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**plan, "made_with": ["machine 1", "machine 2"]}))
    for seed in (1, 2):
        (tmp_path / f"{seed}").mkdir()
        own = {**plan, "made_with": [f"machine {seed}"]}
        (tmp_path / f"{seed}" / "study.json").write_text(json.dumps(own))
        shutil.copytree(study / f"seed-{seed}", tmp_path / f"{seed}" / f"seed-{seed}")
        write_archive([tmp_path / f"{seed}"], tmp_path / f"{seed}.json")
    apart = episodes.draw([tmp_path / "1.json", tmp_path / "2.json"], tmp_path / "apart.png")
    assert str(apart) == str(episodes.draw([study], tmp_path / "whole.png")) and apart["Three & more <cells>"]["sppo"]
    write_archive([tmp_path / "1.json", tmp_path / "2"], tmp_path / "both.json")
    write_archive([study], tmp_path / "study.json")
    assert (tmp_path / "both.json").read_text() == (tmp_path / "study.json").read_text()
    write_archive([tmp_path / "1.json", tmp_path / "both.json", tmp_path / "both.json"], tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "study.json").read_text(), "no run counts twice"
    write_archive([tmp_path / "1.json", study], tmp_path / "grown.json")
    assert (tmp_path / "grown.json").read_text() == (tmp_path / "study.json").read_text(), "nor one of the folder again"


def test_two_runs_of_one_name_and_seed_are_not_two_seeds(study: Path) -> None:
    again = study / "seed-1" / "sppo" / "version_1"
    shutil.copytree(study / "seed-1" / "sppo" / "version_0", again)
    with pytest.raises(InputError, match="both are sppo with seed 1, and would count as two seeds"):
        find_runs([study])
    config = yaml.safe_load((again / "config.yaml").read_text())
    (again / "config.yaml").write_text(yaml.safe_dump({**config, "run_name": "slower"}))
    assert {(run.label, run.seed) for run in find_runs([study])} >= {("sppo", 1), ("sppo", 2), ("slower", 1)}
    with (again / "metrics.csv").open("a") as file:
        file.write("7,1e")
    with pytest.raises(InputError, match=r"version_1/metrics\.csv: damaged"):
        find_runs([study])


def test_an_archive_keeps_what_lies_between_evaluations() -> None:
    iterations = [1.0, 2.0, 3.0, 4.0, 5.0]
    series = {
        "val/accuracy": ([0.0, 2.0, 4.0], [0.1, 0.2, 0.3]),
        "clock/seconds": (iterations, [10.0, 20.0, 30.0, 40.0, 50.0]),
        "time/rollout": (iterations, [1.0, 2.0, 3.0, 4.0, 5.0]),
        "memory/rollout": (iterations, [5.0, 7.0, 9.0, 6.0, 5.0]),
        "policy/lr": (iterations, [1.0] * 5),
    }
    assert thinned(series) == {
        "val/accuracy": ([0.0, 2.0, 4.0], [0.1, 0.2, 0.3]),
        "clock/seconds": ([2.0, 4.0, 5.0], [20.0, 40.0, 50.0]),
        "time/rollout": ([2.0, 4.0, 5.0], [3.0, 7.0, 5.0]),
        "memory/rollout": ([2.0, 4.0, 5.0], [7.0, 9.0, 5.0]),
    }


@pytest.mark.parametrize("figure", ["efficiency", "episodes"])
@pytest.mark.parametrize("text", ['{"cells": {}}', "no JSON", "[1]"])
def test_a_file_that_is_no_archive_is_named(
    figure: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "numbers.json").write_text(text)
    assert main(["figure", figure, str(tmp_path / "numbers.json")]) == 2
    assert "numbers.json: not an archive of runs" in capsys.readouterr().err.replace("\n", " ")


def test_the_table_of_a_comparison(study: Path, tmp_path: Path) -> None:
    numbers = efficiency.draw([study], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file() and (tmp_path / "figure.svg").is_file()
    assert numbers["baseline"] == "grpo" and numbers["target"] == pytest.approx(0.5)
    cells = numbers["cells"]
    assert list(cells) == ["sppo", "grpo", "ppo"], "in the study's order"
    sppo, grpo, ppo = cells.values()
    assert (sppo["seeds"], sppo["iterations"], sppo["tokens"], sppo["sequences"]) == (2, 2, 20, 4)
    assert sppo["start"] == (pytest.approx(0.2), 0) and sppo["final"][0] == pytest.approx(0.6)
    assert sppo["final"][1] == pytest.approx(0.04 / 2**0.5), "sample standard deviation"
    assert ppo["best"] == (pytest.approx(0.3), None)
    assert (grpo["seconds_to_target"], grpo["faster"]) == (pytest.approx(30), 1)
    assert (sppo["seconds_to_target"], sppo["faster"]) == (pytest.approx(10), pytest.approx(3))
    assert (sppo["sequences_to_target"], sppo["fewer_sequences"]) == (pytest.approx(2), pytest.approx(3))
    assert ppo["seconds_to_target"] is None and ppo["faster"] is None


def test_a_mean_is_taken_only_where_every_seed_has_data() -> None:
    short = (np.array([0.0, 10.0]), np.array([0.0, 1.0]))
    long = (np.array([0.0, 20.0]), np.array([0.0, 1.0]))
    grid, mean, half = efficiency.mean_curve([short, long], points=11)
    assert grid[-1] == 10 and mean[-1] == pytest.approx(0.75)
    assert half[-1] == pytest.approx(12.706 * (0.5 / 2**0.5) / 2**0.5, rel=1e-3), "Student's t with one degree"
    assert np.isnan(efficiency.mean_curve([short], points=3)[2]).all(), "one seed has no interval"


def test_where_a_target_is_reached_lies_between_evaluations() -> None:
    grid, mean = np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.4, 0.3])
    assert efficiency.first_reaching(grid, mean, 0.3) == pytest.approx(5)
    assert efficiency.first_reaching(grid, mean, 0.2) == 0
    assert efficiency.first_reaching(grid, mean, 0.5) is None


def test_labels_and_colours(tmp_path: Path) -> None:
    run(tmp_path, "quickstart", "sppo", 1, [(0, 0.1), (1, 0.2)])
    run(tmp_path / "b", "quickstart", "grpo", 1, [(0, 0.1), (1, 0.2)])
    run(tmp_path, "small_critic", "sppo", 1, [(0, 0.1), (1, 0.2)])
    found = styles(find_runs([tmp_path]))
    assert found == {
        "quickstart · grpo": ("quickstart · grpo", *LOOKS["grpo"]),
        "quickstart · sppo": ("quickstart · sppo", *LOOKS["sppo"]),
        "small_critic": ("small_critic", *SPARE[0]),
    }
    assert len({color for color, _ in [*LOOKS.values(), *SPARE]}) == len(LOOKS) + len(SPARE)


def test_every_algorithm_has_a_look_of_its_own() -> None:
    shown = styles([Run(name, name, 1, {}, Path()) for name in ALGORITHMS])
    assert shown.keys() == ALGORITHMS.keys() <= LOOKS.keys(), "fixed: not one of the spare ones"
    assert len({style.title for style in shown.values()}) == len({style[1:] for style in shown.values()}) == len(shown)


def test_colours_that_look_alike_without_red_or_green_have_another_line() -> None:
    """Viénot, Brettel and Mollon's projections (1999) for people without red or green cones, in linear RGB."""
    red = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    green = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for seen in (red, green):
        looks = [
            (name, seen @ (np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2, line)
            for name, (color, line) in LOOKS.items()
        ]
        for i, (name, color, line) in enumerate(looks):
            for other, its_color, its_line in looks[:i]:
                alike = np.abs(np.clip(color, 0, 1) ** (1 / 2.2) - np.clip(its_color, 0, 1) ** (1 / 2.2)).max() < 0.15
                assert not alike or line != its_line, f"{name} and {other}"


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Any, *arguments: Any) -> Any:
    """The matplotlib figure that a function saves."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    draw(*arguments)
    return figures[0]


def test_bands_of_many_algorithms_have_a_panel_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sppo", "ppo", "grpo", "rloo", "reinforce")
    for count in (3, 5):
        for name in names[:count]:
            for seed in (1, 2):
                run(tmp_path / str(count), name, name, seed, [(0, 0.2), (10, 0.3 + seed / 10), (20, 0.4)])
        axes = drawn(monkeypatch, efficiency.draw, [tmp_path / str(count)], tmp_path / "e.png").axes
        bands = [len(axis.collections) for axis in axes if axis.axison]
        assert bands == ([3, 3] if count == 3 else [0, 0, 1, 1, 1, 1, 1])
    assert [axis.get_title("left") for axis in axes[2:7]] == [ALGORITHMS[name].label for name in sorted(names)], (
        "runs without a study are in the order of their names"
    )


def test_nothing_lies_over_the_data_of_a_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = evaluation(tmp_path / "arithmetic-iteration-2.jsonl", 24, 4)
    for draw in (calibration.draw, tail.draw):
        for axis in drawn(monkeypatch, draw, [file], tmp_path / "figure.png").axes:
            assert not axis.texts and axis.get_legend() is None


def test_peak_memory_by_phase(study: Path) -> None:
    numbers = memory.measure(find_runs([study]))
    assert numbers["grpo"] == {"rollout": 53, "update": 100, "peak": 100}
    assert numbers["sppo"] == {"rollout": 102, "update": 200, "peak": 200}


def test_the_page_of_a_study(study: Path) -> None:
    page = write_report(study).read_text(encoding="utf-8")
    folder = study / "report"
    assert "Three &amp; more &lt;cells&gt;" in page and "data.problems_per_epoch: 32" in page
    for name in ("efficiency", "ablation", "memory", "group_advantage"):
        assert (folder / f"{name}.png").is_file() and f'src="{name}.png"' in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["efficiency"]["cells"]["sppo"]["faster"] == pytest.approx(3)
    assert set(numbers["ablation"]["cells"]) == {"sppo", "ppo"}
    for cell in ("60.0 ± 2.8%", "3.00×", "200 MiB", "50.0%", "30 s of training"):
        assert cell in page, cell


def test_the_page_says_what_the_study_was_run_with(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_lit.study.report.FIGURES", {})
    made = ["sppo-lit 0.1 (commit abc), 2 cores", "sppo-lit 0.2 (commit def and changes), 8 × NVIDIA H100"]
    plan = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**plan, "made_with": made}))
    page = write_report(study).read_text(encoding="utf-8")
    assert f"Run with {made[0]}" in page and f"and with {made[1]}" in page


def test_the_page_names_the_protocol(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppo_lit.study.report.FIGURES", {})
    assert "Protocol" not in write_report(study).read_text(encoding="utf-8")
    plan = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**plan, "protocol": "equal_prompts"}))
    assert f"Protocol {PROTOCOLS['equal_prompts']}" in write_report(study).read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_further_evaluations(study: Path) -> None:
    for seed in (1, 2):
        for cell, values in (("sppo", False), ("ppo", True), ("grpo", None)):
            folder = study / "after" / "samples" / f"seed-{seed}" / f"{cell}-validate" / "version_0" / "evaluations"
            lines = [
                json.loads(x)
                for x in evaluation(folder / "arithmetic-iteration-2.jsonl", 24, 4).read_text().splitlines()
            ]
            for line in lines:
                line["value"] = None if values is None else line["value"]
                line["values"] = line["values"] if values else None
            (folder / "arithmetic-iteration-2.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(study).read_text(encoding="utf-8")
    numbers = json.loads((study / "report" / "numbers.json").read_text())
    assert list(numbers["calibration"]) == ["ppo-validate/version_0", "sppo-validate/version_0"]
    assert list(numbers["tail"]) == ["ppo-validate/version_0"]
    assert 'src="calibration.png"' in page and 'src="tail.png"' in page and "Not drawn" not in page


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    run(tmp_path, "grpo", "grpo", 1, [(0, 0.2), (10, 0.3)])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "tail: no evaluation has the critic&#39;s values" in page
    assert "ablation: runs of at least two of" in page and "ablation.png" not in page
    with pytest.raises(InputError, match="no training run"):
        write_report(tmp_path / "report")


def test_figure_on_the_command_line(study: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_width", 160)  # in 80 columns intervals take two lines
    assert main(["figure", "efficiency", str(study), "--out", "plots/e.png"]) == 0
    shown = capsys.readouterr().out
    assert (
        "seconds to target" in shown
        and "60.0 ± 2.8%" in shown
        and "3.00×" in shown
        and "10 s" in shown
        and "plots/e.png" in shown
    )
    assert (tmp_path / "plots" / "e.svg").is_file()
    with_units = {"aggregates": ("60.0% [58.0%, 62.0%]", "3.00×", "11 s ["), "sampling_cost": ("50.0%", "3.00× [")}
    for name, parts in with_units.items():
        assert main(["figure", name, str(study)]) == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in parts), shown
    assert main(["figure", "group_advantage"]) == 0 and (tmp_path / "group_advantage.png").is_file()
    assert main(["figure", "group_advantage", "--out", "plots/g.pdf"]) == 0
    assert (tmp_path / "plots" / "g.pdf").read_bytes().startswith(b"%PDF")
    assert "plots/g.png and plots/g.svg and plots/g.pdf" in capsys.readouterr().out
    capsys.readouterr()
    write_archive([study], tmp_path / "all.json")
    for arguments, part in (
        (["speed"], "choose one of efficiency"),
        (["efficiency"], "no sources"),
        (["efficiency", "nowhere"], "nowhere: no such folder"),
        (["efficiency", "all.json", "--out", "all.png"], "--out all.png: its numbers would go to all.json"),
        (["memory", str(tmp_path / "plots")], "no training run"),
        (["group_advantage", "--out", "g.jpg"], "--out g.jpg: not the name of a .png, .svg or .pdf file"),
        (["group_advantage", "--out", "plots"], "--out plots: not the name"),
        (["group_advantage", "--out", "plots/g.pdf/x.png"], "cannot write the figure plots/g.pdf/x.png: "),
    ):
        assert main(["figure", *arguments]) == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1


def test_numbers_as_tables() -> None:
    [single, nested] = tables({"k": 64, "none": None, "curve": [1, 2], "a_b": {"x": (0.5, 0.1), "long": [0.1] * 9}})
    assert single.rows == [["k", "64"], ["none", "–"]]
    assert nested.columns == ["", "x"] and nested.rows == [["a_b", "0.500 ± 0.100"]]
    units = {"x": "%", "y": "×", "z": "MiB", "s": "s"}
    [row] = tables({"cell": {"x": (0.5, None), "y": 1.466, "z": 1234.5, "s": 192.0}}, units=units)
    assert [cell for _, cell in row.rows] == ["50.0%", "1.47×", "1,234 MiB", "3:12 min"]
    costs = {"seconds to 50.0%": {"a": 9.0, "a ratio": 1.5, "a reached": "2 of 2"}, "best": {"a": 3}}
    [grid] = tables(costs, units={"seconds": "s", "ratio": "×", "best": "%"})
    assert [row[1:] for row in grid.rows] == [["9.0 s", "3"], ["1.50×", "–"], ["2 of 2", "–"]]
    assert tables({"x": -1e-9}, units=units)[0].rows == [["x", "0.0%"]]
    [turned] = tables({"cell": {"x": 12345.6, "y": 0.00012, "z": float("nan")}})
    assert turned.columns == ["", "cell"] and [row[1] for row in turned.rows] == ["12,346", "0.00012", "–"]
