"""What training cost, kept over a resume; budgets that end a run; evaluations spread over a budget; memory by phase."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import HELD_OUT, recipe, refused
from run_files import csv_rows

from sppo_lit.cli.main import main
from sppo_lit.utils.peak_memory import CLEAR_REFS, peak_mib, reset_peak

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


def rows(tmp_path: Path) -> list[dict[str, str]]:
    return csv_rows(tmp_path / "runs" / "tiny" / "version_0" / "metrics.csv")


def column(table: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in table if row[name]]


def evaluated(table: list[dict[str, str]]) -> list[int]:
    return [int(row["step"]) for row in table if row["val/accuracy"]]


def test_a_resumed_run_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # seconds of this process, however busy the machine is
    file = str(recipe(tmp_path))
    assert main(["run", file]) == 0
    assert main(["run", "fit", file, "--max_epochs", "3", "--ckpt_path", "last"]) == 0
    table = rows(tmp_path)
    assert column(table, "clock/sequences") == [8, 16, 24]
    lengths = column(table, "rollout/response_length")
    assert column(table, "clock/tokens") == pytest.approx([8 * sum(lengths[: i + 1]) for i in range(3)])
    seconds, phases = column(table, "clock/seconds"), column(table, "time/iteration")
    for i, (now, before) in enumerate(zip(seconds, [0.0, *seconds], strict=False)):
        assert phases[i] <= now - before < phases[i] + 1, "an iteration, and nothing beside it"


def test_a_budget_of_tokens_ends_the_run_with_an_evaluation_and_a_checkpoint(tmp_path: Path, capsys: Any) -> None:
    changes = {
        **HELD_OUT,
        "clock": {"max_tokens": 200},
        "trainer.max_epochs": -1,
        "trainer.check_val_every_n_epoch": 50,
    }
    file = str(recipe(tmp_path, changes))
    assert main(["run", file]) == 0
    table = rows(tmp_path)
    tokens = column(table, "clock/tokens")
    assert tokens[-1] >= 200 > tokens[-2]
    assert evaluated(table) == [0, len(tokens)]
    last = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert int(torch.load(last, weights_only=True)["state_dict"]["iterations_done"]) == len(tokens)
    shown = capsys.readouterr().out
    assert f"iteration {len(tokens)} · 100% of the budget" in shown and "left" in shown

    assert main(["run", "fit", file, "--ckpt_path", "last"]) == 0  # used up: nothing happens
    assert column(rows(tmp_path), "clock/tokens") == tokens
    assert main(["run", "fit", file, "--ckpt_path", "last", "--clock.max_tokens", "300"]) == 0
    assert column(rows(tmp_path), "clock/tokens")[-1] >= 300


def test_evaluations_are_spread_over_the_budget(tmp_path: Path) -> None:
    """Also where the run is interrupted between two of them; `check_val_every_n_epoch` has no say."""
    budget = {"max_tokens": 64 * 8, "evaluations": 4}  # about eight iterations of at most 64 tokens
    changes = {**HELD_OUT, "clock": budget, "trainer.max_epochs": -1, "trainer.check_val_every_n_epoch": 1}
    file = str(recipe(tmp_path, changes))
    assert main(["run", file, "--max_epochs", "3", "--clock.evaluations", "4"]) == 0
    first = evaluated(rows(tmp_path))
    assert main(["run", "fit", file, "--ckpt_path", "last"]) == 0
    table = rows(tmp_path)
    tokens = column(table, "clock/tokens")
    due = [next(i + 1 for i, t in enumerate(tokens) if t >= 128 * part) for part in (1, 2, 3, 4)]
    assert evaluated(table) == sorted({*first, 0, 3, *due})
    assert due[-1] == len(tokens)


def test_a_budget_of_seconds_ends_the_run(tmp_path: Path) -> None:
    file = recipe(tmp_path, {**HELD_OUT, "clock": {"max_seconds": 0.5}, "trainer.max_epochs": -1})
    assert main(["run", str(file)]) == 0
    seconds = column(rows(tmp_path), "clock/seconds")
    assert seconds[-1] >= 0.5 and (len(seconds) == 1 or seconds[-2] < 0.5)


@pytest.mark.parametrize(
    ("clock", "line"),
    [
        ({"max_seconds": 0}, "clock.max_seconds is 0"),
        ({"max_tokens": -5}, "clock.max_tokens is -5"),
        ({"evaluations": 3}, "clock.evaluations needs a budget"),
        ({"max_tokens": 5, "evaluations": -1}, "clock.evaluations is -1"),
    ],
)
def test_impossible_budgets(clock: dict[str, Any], line: str, tmp_path: Path, capsys: Any) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"clock": clock})], line)


needs_reset = pytest.mark.skipif(not reset_peak(torch.device("cpu")), reason=f"{CLEAR_REFS} cannot be written")


@needs_reset
def test_peak_memory_is_that_of_the_stretch() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    start = peak_mib(device)
    with mmap.mmap(-1, 64 * 2**20) as block:  # not through an allocator, which may keep what is freed
        for _ in range(64):
            block.write(bytes(2**20))
        held = peak_mib(device)
    assert 60 < held - start < 90
    assert reset_peak(device)
    assert peak_mib(device) < held - 30


@needs_reset
def test_memory_by_phase_is_logged(tmp_path: Path) -> None:
    assert main(["run", str(recipe(tmp_path))]) == 0
    for phase in ("rollout", "verify", "values", "update"):
        assert all(50 < mib < 20_000 for mib in column(rows(tmp_path), f"memory/{phase}"))
    assert "memory/wait" not in rows(tmp_path)[0]
