"""A study's YAML: what it stands for, and one line for what is wrong with it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import ROOT, recipe, refused
from rich.console import Console

from sppo_lit import __version__
from sppo_lit.cli.main import run_settings
from sppo_lit.errors import InputError
from sppo_lit.study.command import check
from sppo_lit.study.display import table
from sppo_lit.study.plan import TRAIN, jobs, read, read_study_json, write_study_json
from sppo_lit.study.progress import Progress
from sppo_lit.study.runner import environment

pytestmark = pytest.mark.filterwarnings("ignore")


def study(tmp_path: Path, **changes: Any) -> Path:
    """A study of two cells; `...` removes a key."""
    content: dict[str, Any] = {
        "title": "Two cells",
        "recipe": str(recipe(tmp_path)),
        "cells": {"sppo": None, "grpo": {"model.algorithm": "grpo", "data.problems_per_epoch": 4}},
        "budget": {"tokens": 300},
        "seeds": [1, 2],
        "evaluations": 2,
        "out": str(tmp_path / "out"),
    }
    content = {key: value for key, value in {**content, **changes}.items() if value is not ...}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def test_cells_take_turns_within_a_seed(tmp_path: Path) -> None:
    plan = read(
        str(study(tmp_path, after={"samples": {"model.evaluation.samples": 4}}, common={"model.ppo.clip_low": 0.1}))
    )
    order = [(j.seed, j.cell, j.stage) for j in jobs(plan)]
    one = [(1, "sppo", TRAIN), (1, "grpo", TRAIN), (1, "sppo", "samples"), (1, "grpo", "samples")]
    assert order == one + [(2, cell, stage) for _, cell, stage in one]
    some = read(str(study(tmp_path, after={"samples": {"cells": ["sppo"], "model.evaluation.samples": 4}})))
    assert [(j.cell, j.stage) for j in jobs(some, seeds=[1])] == [("sppo", TRAIN), ("grpo", TRAIN), ("sppo", "samples")]
    assert not any(argument.startswith("--cells") for job in jobs(some) for argument in job.arguments)
    assert [(j.seed, j.cell) for j in jobs(plan, seeds=[2], only=["grpo"])] == [(2, "grpo"), (2, "grpo")]
    assert [j.seed for j in jobs(plan, seeds=[7, 1, 7], only=["grpo"])] == [7, 7, 1, 1], "also seeds of one's own"
    train, validate = jobs(plan, seeds=[2], only=["grpo"])
    assert train.arguments[:2] == ("run", "fit") and validate.arguments[:2] == ("run", "validate")
    for flag in ("--model.algorithm=grpo", "--model.ppo.clip_low=0.1", "--seed_everything=2", "--clock.max_tokens=300"):
        assert flag in train.arguments
    assert "--model.evaluation.samples=4" in validate.arguments
    assert len({j.runs for j in jobs(plan)}) == len({j.log for j in jobs(plan)}) == 8


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"cell": {}}, ["unknown key cell"]),
        ({"recipe": ...}, ["recipe is missing"]),
        ({"recipe": "nowhere.yaml"}, ["nowhere.yaml: no such file"]),
        ({"cells": {}}, ["cells is {}"]),
        ({"cells": {"a/b": {}}}, ["cells is"]),
        ({"cells": {"a": {"seed_everything": 3}}}, ["cells.a", "seed_everything is set by the study (from seeds)"]),
        ({"budget": {"minutes": 3}}, ["budget is {'minutes': 3}", "{seconds: N}"]),
        ({"budget": {"seconds": 0}}, ["budget is"]),
        ({"seeds": [1, 1]}, ["seeds is [1, 1]"]),
        ({"baseline": "rloo"}, ["baseline rloo is no cell", "sppo, grpo"]),
        ({"after": {"x": {"cells": ["rloo"]}}}, ["after.x: rloo is no cell"]),
        ({"devices": ["gpu"]}, ["devices is ['gpu']", "cuda:0"]),
        ({"cells": {"a": {"model.algoritm": "grpo"}}}, ["cell a", "--model.algoritm", "model.algorithm"]),
        ({"common": {"model.ppo.clip_low": "much"}}, ["cell sppo", "--model.ppo.clip_low", "much"]),
        ({"cells": {"a": {}, "b": {"model.algorithm": "grppo"}}}, ["cell b: model.algorithm 'grppo' is unknown"]),
        ({"cells": {"a": {}, "b": {"model.batch.minibatch_size": 3}}}, ["cell b", "minibatch_size"]),
        ({"after": {"x": {"model.evaluation.sampels": 4}}}, ["after.x, cell sppo", "--model.evaluation.sampels"]),
        ({"protocol": ["equal_prompts"]}, ["protocol is ['equal_prompts']", "equal_prompts or equal_sequences"]),
        ({"cells": {"a": {}, "a-x": {}}, "after": {"x": {}}}, ["cell a-x has the name of another cell's validation"]),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, capsys: Any, changes: dict[str, Any], parts: list[str]) -> None:
    refused(capsys, tmp_path, ["study", study(tmp_path, **changes)], *parts)


PROTOCOL_CELLS: dict[str, Any] = {
    "sppo": None,
    "grpo": {"model.algorithm": "grpo"},
    "rloo": {"model.algorithm": "rloo", "model.batch": {"samples_per_prompt": 2}},
}


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [
        # The recipe has 8 problems and a minibatch of 4: two steps.
        ("equal_prompts", {"sppo": (8, 4), "grpo": (8, 32), "rloo": (8, 8)}),
        ("equal_sequences", {"sppo": (8, 4), "grpo": (1, 4), "rloo": (4, 4)}),
    ],
)
def test_protocol_sizes_the_iterations_of_every_cell(
    tmp_path: Path, protocol: str, sizes: dict[str, tuple[int, int]]
) -> None:
    plan = read(str(study(tmp_path, protocol=protocol, cells=PROTOCOL_CELLS)))
    samples = {"sppo": 1, "grpo": 8, "rloo": 2}
    for job in jobs(plan, seeds=[1]):
        settings = run_settings(job.arguments[1:])
        size = (settings.data.problems_per_epoch, settings.model.batch.minibatch_size)
        assert size == sizes[job.cell]
        assert size[0] * samples[job.cell] / size[1] == 2, "optimizer steps"
    write_study_json(plan)
    assert read_study_json(plan.out)["protocol"] == protocol
    shown = Console(width=120, record=True, file=io.StringIO())
    shown.print(table(plan, {job: Progress() for job in jobs(plan)}, 40, 0.0))
    assert f"Two cells · {protocol.replace('_', ' ')}" in shown.export_text()


def test_protocol_starts_from_the_numbers_of_the_recipe_and_common(tmp_path: Path) -> None:
    cells: dict[str, Any] = {"four": {"model.batch.samples_per_prompt": 4}, "eight": None}
    common = {"model.algorithm": "grpo", "data": {"problems_per_epoch": 16}, "model.batch.minibatch_size": 32}
    prompts, sequences = (
        read(str(study(tmp_path, protocol=protocol, cells=cells, common=common))).cells
        for protocol in ("equal_prompts", "equal_sequences")
    )
    numbers = ("data.problems_per_epoch", "model.batch.minibatch_size")
    assert [[prompts[c][n] for n in numbers] for c in cells] == [[16, 16], [16, 32]]
    assert [[sequences[c][n] for n in numbers] for c in cells] == [[32, 32], [16, 32]]


def test_a_study_remembers_all_that_it_was_run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read(str(study(tmp_path)))
    write_study_json(plan)
    write_study_json(plan)
    [entry] = read_study_json(plan.out)["made_with"]
    assert re.search(rf"^sppo-lit {re.escape(__version__)}( \(commit [0-9a-f]{{7,}}( and changes)?\))?, Python", entry)
    assert re.search(r"torch \S+ on .+, \d+ cores?, \d+ GiB of memory$", entry)
    monkeypatch.setattr("sppo_lit.study.plan.made_with", lambda: "another machine")
    write_study_json(plan)
    assert read_study_json(plan.out)["made_with"] == [entry, "another machine"]


def test_the_screen_of_a_study_fits_in_80_columns(tmp_path: Path) -> None:
    plan = read(str(study(tmp_path, after={"samples": {"model.evaluation.samples": 4}})))
    busy = {"iteration": 12345, "accuracy": 1.0, "share": 1.0, "seconds": 3599.0, "remaining": 43210.0}
    screen = Console(record=True, width=80, file=io.StringIO())
    screen.print(table(plan, {job: Progress(state="running", **busy) for job in jobs(plan)}, 24, 3599.0))
    lines = screen.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80 and len(lines) <= 24 and "…" not in "".join(lines)
    assert lines[3].split() == ["sppo", "1", "running", "12345", "100.0%", "100%", "59:59", "min", "12:00:10", "h"]


def test_a_resumed_run_has_no_time_left_before_it_has_gained_anything(tmp_path: Path) -> None:
    plan = read(str(study(tmp_path)))
    job = jobs(plan)[0]
    log, rows = job.run / "metrics.csv", "step,clock/tokens\n1,48\n"
    log.parent.mkdir(parents=True)
    log.write_text(rows)
    progress = Progress()
    progress.start(job, plan.budget)
    assert (progress.share, progress.remaining) == (0.16, None)
    progress.started -= 10
    log.write_text(f"{rows}2,96\n")
    progress.update(job, plan.budget)
    assert progress.remaining == pytest.approx(10 * 0.68 / 0.16, rel=0.01)
    log.write_text(f"{rows}2,300\n")
    progress.update(job, plan.budget)
    assert progress.remaining is None, "the budget is used up, the last evaluation goes on"


def test_a_study_without_protocol_sets_its_own_numbers(tmp_path: Path) -> None:
    plan = read(str(study(tmp_path)))
    assert plan.protocol is None and plan.cells["sppo"] == {}
    assert plan.cells["grpo"] == {"model.algorithm": "grpo", "data.problems_per_epoch": 4}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"protocol": "equal_tokens"}, ["protocol is 'equal_tokens'", "equal_prompts or equal_sequences"]),
        (
            {"cells": {"a": {"model.algorithm": "rloo"}}, "protocol": "equal_sequences"},
            ["cells.a: equal sequences: the 8 sequences", "by 5 responses to a prompt"],
        ),
        (
            {
                "cells": {"a": {"model.batch.samples_per_prompt": 3}},
                "common": {"model.algorithm": "grpo"},
                "protocol": "equal_prompts",
            },
            ["cells.a: equal prompts: model.batch.minibatch_size 4 × 3", "recipe's 8 responses"],
        ),
        ({"protocol": "equal_prompts"}, ["cells.grpo: data.problems_per_epoch is set by the study (from protocol)"]),
        (
            {"cells": {"a": {"model.batch": {"minibatch_size": 8}}}, "protocol": "equal_prompts"},
            ["cells.a: model.batch.minibatch_size is set by the study"],
        ),
        (
            {"cells": {"a": {}}, "common": {"model.batch.minibatch_size": 3}, "protocol": "equal_prompts"},
            ["cells.a: model.batch.minibatch_size 3 does not divide the 8 sequences"],
        ),
        (
            {"cells": {"a": {"model.algorithm": "trpo"}}, "protocol": "equal_prompts"},
            ["cells.a: model.algorithm 'trpo' is unknown"],
        ),
    ],
)
def test_a_protocol_that_a_cell_cannot_follow_is_told_in_one_line(
    tmp_path: Path, capsys: Any, changes: dict[str, Any], parts: list[str]
) -> None:
    refused(capsys, tmp_path, ["study", study(tmp_path, **changes)], *parts)


def test_mistakes_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    file = study(tmp_path)
    refused(capsys, tmp_path, ["study", tmp_path / "no.yaml"], "no.yaml: no such file")
    refused(capsys, tmp_path, ["study"], "required: FILE")
    refused(capsys, tmp_path, ["study", file, "--seeds", "1,x"], "--seeds")
    refused(capsys, tmp_path, ["study", file, "--seeds", "1,-1"], "--seeds -1: a seed is 0 or above")
    refused(capsys, tmp_path, ["study", file, "--only", "ppo"], "--only ppo is not in it", "sppo, grpo")
    refused(capsys, tmp_path, ["study", file, "--report", "--only", "sppo"], "--report is of all runs")
    refused(capsys, tmp_path, ["study", file, "--archive", tmp_path], "is a folder; give the name of a file")
    refused(capsys, tmp_path, ["study", file, "--out", file], f"{file}: File exists; choose another file or folder")
    file.write_text(file.read_text().replace("cells:", "cells: &a\n  again: *a"))
    refused(capsys, tmp_path, ["study", file], "study.yaml: an anchor (&) refers to a place inside itself")
    file.write_text("cells: [")
    refused(capsys, tmp_path, ["study", file], "no valid YAML")


def test_devices_are_given_out_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    plan = read(str(study(tmp_path, devices=["cuda:0", "cuda:1"], threads=3)))
    assert plan.at_once == 2
    first, second = environment(plan, 0), environment(plan, 1)
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("4", "7"), "of those that we may use"
    assert first["OMP_NUM_THREADS"] == "3" and "PL_GLOBAL_SEED" not in first
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(plan, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment(read(str(study(tmp_path, devices=["cpu"]))), 0)["CUDA_VISIBLE_DEVICES"] == ""


MANY_CELLS = {"levels_equal_prompts", "levels_equal_sequences", "levels_half_rate", "levels_learning_rates"}
SHIPPED = [
    pytest.param(file, marks=[pytest.mark.slow] * (file.stem in MANY_CELLS), id=file.stem)
    for file in sorted((ROOT / "recipes" / "study").glob("*.yaml"))
]


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_studies_fit_their_recipes(file: Path) -> None:
    plan = read(str(file))
    check(jobs(plan), run_settings)
    assert plan.baseline in plan.cells


def test_a_study_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown key (data|model|seed_everything|trainer)"):
        read(str(recipe(tmp_path)))
