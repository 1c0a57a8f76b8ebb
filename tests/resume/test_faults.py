"""Runs that survive: signals, values and gradients that are not finite, no memory, no disk, a damaged checkpoint."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import BASE as POLICY
from cli_helpers import ROOT, SMALL, recipe, refused
from run_files import csv_rows
from troubles import SignalAt, SmallFiles, SmallMemory, callback

from sppo_lit.cli.main import main
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.policy import Policy

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


def rows(run: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` without what depends on the clock."""
    clocks = ("time/", "memory/", "clock/seconds")
    return [
        {k: v for k, v in row.items() if not k.startswith(clocks) and not k.endswith("per_second")}
        for row in csv_rows(run / "metrics.csv")
    ]


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def iterations(run: Path, name: str = "last") -> int:
    return int(checkpoint(run, name)["state_dict"]["iterations_done"])


def weights(run: Path, network: str = "") -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoint(run)["state_dict"].items() if k.startswith(network)}


def equal(a: Path, b: Path) -> bool:
    """Weights, optimizers and rows, bit for bit."""
    one, two = checkpoint(a), checkpoint(b)
    same = all(torch.equal(w, two["state_dict"][name]) for name, w in one["state_dict"].items())
    return same and str(one["optimizer_states"]) == str(two["optimizer_states"]) and rows(a) == rows(b)


def runs(tmp_path: Path, name: str) -> Path:
    return tmp_path / "runs" / name / "version_0"


# ------------------------------------------------------------------------------------------------------------- signals

BASE = {"trainer.max_epochs": 4, "data.val": [{"path": "arithmetic", "limit": 4}], "trainer.check_val_every_n_epoch": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", str(recipe(folder, BASE, "whole.yaml"))]) == 0
    return runs(folder, "whole")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("phase", "every", "left_with"),
    [
        ("sampling", 1, 2),
        ("sampling", 3, 2),  # saved on leaving, though due only after the third
        ("updating", 1, 2),
        ("updating", 3, 3),  # the second exists in no checkpoint: the third is finished first
        ("evaluating", 1, 1),  # of the second
        ("evaluating", 3, 2),
    ],
)
def test_a_signal_loses_nothing_but_the_running_iteration(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: int, phase: str, every: int, left_with: int
) -> None:
    if signum == signal.SIGINT and every == 3:
        pytest.skip("the same path as SIGTERM")
    trouble = callback(SignalAt, signum=int(signum), phase=phase, iteration=2, part=int(phase == "updating"))
    changes = {**BASE, "checkpoint": {"every_n_iterations": every}, "trainer.callbacks": [trouble]}
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert main(["run", str(recipe(tmp_path, changes))]) == 128 + signum
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    run = runs(tmp_path, "tiny")
    assert iterations(run) == left_with
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if "interrupted" in line]
    assert len(lines) == 1 and not shown.err
    said = f"interrupted after iteration {left_with}; resume: lightning run fit {run}/config.yaml --ckpt_path "
    assert lines[0] == f"{said}{run}/checkpoints/last.ckpt"
    assert main(["run", "fit", str(recipe(tmp_path, BASE)), "--ckpt_path", "last"]) == 0
    assert equal(whole, run)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    trouble = callback(SignalAt, signum=int(signal.SIGTERM), phase="sampling", iteration=1, times=2)
    done = subprocess.run(
        [sys.executable, "-m", "sppo_lit.cli", "run", str(recipe(tmp_path, {**BASE, "trainer.callbacks": [trouble]}))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "interrupted" not in done.stdout and iterations(runs(tmp_path, "tiny")) == 1


def test_a_signal_ends_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(tmp_path, {**BASE, "trainer.max_epochs": 1}))]) == 0
    trouble = callback(SignalAt, signum=int(signal.SIGTERM), phase="evaluating", iteration=1)
    file = recipe(tmp_path, {**BASE, "trainer.callbacks": [trouble]})
    capsys.readouterr()
    assert main(["run", "validate", str(file), "--ckpt_path", "last"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("sppo: interrupted")


@pytest.mark.parametrize("phase", ["sampling", "updating"])
def test_a_memory_of_prompts_goes_on_where_it_was_left(tmp_path: Path, phase: str) -> None:
    """Its state is that of the last finished iteration, also where the run is left in the next one."""
    own = {"model.algorithm": "spo", "model.critic_optimizer": ..., "data.train.limit": 12, "trainer.max_epochs": 5}
    assert main(["run", str(recipe(tmp_path, {**BASE, **own}, "whole.yaml"))]) == 0
    trouble = callback(SignalAt, signum=int(signal.SIGTERM), phase=phase, iteration=3)
    changes = {**BASE, **own, "trainer.callbacks": [trouble]}
    assert main(["run", str(recipe(tmp_path, changes))]) == 128 + signal.SIGTERM
    run = runs(tmp_path, "tiny")
    assert len(checkpoint(run)["memory_of_prompts"]["prompts"]) == 12
    assert main(["run", "fit", str(recipe(tmp_path, {**BASE, **own})), "--ckpt_path", "last"]) == 0
    assert equal(runs(tmp_path, "whole"), run)
    one, two = (checkpoint(r)["memory_of_prompts"] for r in (runs(tmp_path, "whole"), run))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "select", [{"by": "tracker", "pool": 2}, pytest.param({"by": "critic", "pool": 3}, marks=pytest.mark.slow)]
)
def test_a_choice_of_problems_goes_on_where_it_was_left(tmp_path: Path, select: dict[str, Any]) -> None:
    own = {"data.select": select, "data.train.limit": 40, "trainer.max_epochs": 4}
    assert main(["run", str(recipe(tmp_path, own, "whole.yaml"))]) == 0
    trouble = callback(SignalAt, signum=int(signal.SIGTERM), phase="sampling", iteration=2)
    assert main(["run", str(recipe(tmp_path, {**own, "trainer.callbacks": [trouble]}))]) == 128 + signal.SIGTERM
    assert main(["run", "fit", str(recipe(tmp_path, own)), "--ckpt_path", "last"]) == 0
    whole, resumed = runs(tmp_path, "whole"), runs(tmp_path, "tiny")
    assert equal(whole, resumed)
    one, two = (checkpoint(run).get("memory_of_prompts", {}) for run in (whole, resumed))
    assert len(one) == (5 if select["by"] == "tracker" else 0)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_run_killed_again_and_again_equals_one_that_was_not() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--kills", "3", "--iterations", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and done.stdout.endswith("equal bit for bit\n"), done.stdout + done.stderr
    assert done.stdout.count("all gone") == 3


# ---------------------------------------------------------------------------------------------------------- not finite


def broken_forward(monkeypatch: pytest.MonkeyPatch, network: type, spoil: Any, grad: bool) -> None:
    """Outputs of every pass with (or without) gradient go through `spoil`."""
    forward = network.forward

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        return spoil(found) if torch.is_grad_enabled() == grad else found

    monkeypatch.setattr(network, "forward", broken)


def test_bad_gradients_in_a_row_end_the_run_with_the_minibatch_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(terms: Any) -> Any:
        return terms._replace(logprobs=terms.logprobs * float("nan"))

    broken_forward(monkeypatch, Policy, spoil, grad=True)
    assert (
        main(["run", str(recipe(tmp_path, {"model.policy_optimizer.max_skipped_steps": 3, "trainer.max_epochs": 4}))])
        == 2
    )
    error = capsys.readouterr().err
    run = runs(tmp_path, "tiny")
    file = run / "bad_minibatch-policy-rank0.pt"
    assert error.count("\n") == 1 and "3 consecutive steps of the policy" in error and str(file) in error
    saved = torch.load(file, weights_only=True)
    assert saved["iteration"] == 1 and saved["response_ids"].shape[0] == len(saved["texts"]) == 4
    assert rows(run)[0]["policy/skipped_steps"] == "2.0" and iterations(run) == 1
    assert all(bool(w.isfinite().all()) for w in weights(run).values())


def test_bad_gradients_of_the_first_iteration_leave_the_minibatch_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_forward(monkeypatch, ScalarCritic, lambda logits: logits + float("inf"), grad=True)
    assert main(["run", str(recipe(tmp_path, {"model.critic_optimizer.max_skipped_steps": 1}))]) == 2
    assert (runs(tmp_path, "tiny") / "bad_minibatch-critic-rank0.pt").is_file()


def test_the_policy_learns_from_no_value_that_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(logits: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(logits)) < 3, torch.nan, logits)

    broken_forward(monkeypatch, ScalarCritic, some, grad=False)
    assert main(["run", str(recipe(tmp_path, {"trainer.max_epochs": 1}))]) == 0
    run = runs(tmp_path, "tiny")
    [row] = rows(run)
    assert row["critic/bad_values"] == "3.0" and float(row["rollout/kept"]) == 5 / 8
    assert row["policy/skipped_steps"] == row["critic/skipped_steps"] == "0.0"
    assert "critic: 3 values are not finite" in capsys.readouterr().out
    assert all(bool(w.isfinite().all()) for w in weights(run).values())


def test_a_critic_that_is_broken_altogether_leaves_the_policy_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--max_epochs", "1", "--model.policy_optimizer.lr"]
    assert main(["run", str(recipe(tmp_path, name="still.yaml")), *arguments, "0"]) == 0
    broken_forward(monkeypatch, ScalarCritic, lambda logits: logits * float("nan"), grad=False)
    assert main(["run", str(recipe(tmp_path, name="broken.yaml")), *arguments, "1"]) == 0
    before, after = (weights(runs(tmp_path, name), "policy.") for name in ("still", "broken"))
    assert before and all(torch.equal(w, after[name]) for name, w in before.items())


# ------------------------------------------------------------------------------------------------------ memory and disk


def test_out_of_memory_in_an_update_repeats_the_minibatch_in_smaller_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe(tmp_path, name="large.yaml"))]) == 0
    changes = {"trainer.callbacks": [callback(SmallMemory, sequences=1)], "model.memory.micro_batch_tokens": 64}
    assert main(["run", str(recipe(tmp_path, changes, "small.yaml"))]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert lines == [
        f"out of memory in an update: continuing with model.memory.micro_batch_tokens {n}" for n in (32, 16)
    ]
    large, small = runs(tmp_path, "large"), runs(tmp_path, "small")
    counts, sizes = (
        [float(row[f"update/{k}"]) for row in rows(small)] for k in ("out_of_memory", "micro_batch_tokens")
    )
    assert sum(counts) == 2 and counts[0] and sizes[1] == 16
    for name, weight in weights(large).items():
        torch.testing.assert_close(weights(small)[name], weight, rtol=1e-3, atol=1e-6)


SUPERVISED = {
    "class_path": "sppo_lit.training.supervised.SupervisedModule",
    "init_args": {"policy": {"path": str(POLICY), "init": "random", "config": SMALL}, "batch": {"minibatch_size": 4}},
}


@pytest.mark.parametrize("model", [{}, {"model": SUPERVISED}], ids=["sppo", "supervised"])
def test_a_resumed_run_remembers_what_memory_allows(tmp_path: Path, model: dict[str, Any]) -> None:
    trouble = {"trainer.callbacks": [callback(SmallMemory, sequences=1)]}
    init = "model.init_args" if model else "model"
    tokens = f"{init}.memory.micro_batch_tokens"
    assert main(["run", str(recipe(tmp_path, {**model, tokens: 64, **trouble}))]) == 0
    run = runs(tmp_path, "tiny")
    for count, size in ((3, 64), (4, 48)):  # the recipe's setting as before, then another one
        assert resumed(recipe(tmp_path, {**model, tokens: size}), count) == 0
    assert [float(row["update/micro_batch_tokens"]) for row in rows(run)[1:]] == [16, 16, 48]
    file = run / "checkpoints" / "last.ckpt"
    older = torch.load(file, weights_only=True)
    del older["token_budget"]
    torch.save(older, file)
    assert resumed(recipe(tmp_path, {**model, tokens: 40}), 5) == 0
    assert float(rows(run)[-1]["update/micro_batch_tokens"]) == 40


def resumed(file: Path, iterations: int) -> int:
    return main(["run", "fit", str(file), "--ckpt_path", "last", "--max_epochs", str(iterations)])


def test_a_sequence_too_large_for_the_memory_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, {"trainer.callbacks": [callback(SmallMemory, sequences=0)]})
    assert "ran out of memory; lower model.memory.micro_batch_tokens" in refused(capsys, tmp_path, ["run", file])


def test_no_space_for_a_checkpoint_keeps_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"trainer.callbacks": [callback(SmallFiles, size=20_000, iteration=2)], "trainer.max_epochs": 4}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert main(["run", str(recipe(tmp_path, changes))]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "choose another folder" in error, error
    run = runs(tmp_path, "tiny")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert iterations(run) == 2 and iterations(run, "previous") == 1
    assert main(["run", "fit", str(recipe(tmp_path, {"trainer.max_epochs": 3})), "--ckpt_path", "last"]) == 0
    assert [row["step"] for row in rows(run)] == ["1", "2", "3"]


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kept", [0, 1000, -1])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    file = str(recipe(tmp_path, BASE))
    assert main(["run", file, "--max_epochs", "3"]) == 0
    run = runs(tmp_path, "tiny")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        error = refused(capsys, tmp_path, ["run", "fit", file, "--ckpt_path", last])
    assert "damaged" in error and "previous.ckpt" in error
    assert main(["run", "fit", file, "--ckpt_path", "last"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert lines == [f"{last} is damaged: resuming from previous.ckpt (iteration 2)"]
    assert [p.name for p in run.parent.iterdir()] == ["version_0"]
    assert equal(whole, run)


def test_nothing_left_to_fall_back_to_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"trainer.max_epochs": 1})
    assert main(["run", str(file)]) == 0
    (runs(tmp_path, "tiny") / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert "damaged" in refused(capsys, tmp_path, ["run", "fit", file, "--ckpt_path", "last"])


def test_another_precision_at_resume_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recipe(tmp_path))
    assert main(["run", file, "--max_epochs", "1"]) == 0
    capsys.readouterr()
    arguments = ["run", "fit", file, "--ckpt_path", "last", "--max_epochs"]
    assert main([*arguments, "2"]) == 0
    assert "resumed with another setting" not in capsys.readouterr().out
    assert main([*arguments, "3", "--precision", "bf16-true"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "resumed with" in line]
    assert lines == ["resumed with another setting: precision 32-true → bf16-true; equal to the old one up to rounding"]
    assert {w.dtype for w in weights(runs(tmp_path, "tiny"), "policy.").values()} == {torch.bfloat16}
