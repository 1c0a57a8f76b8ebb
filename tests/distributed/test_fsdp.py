"""Sharded training through the real command line: against one process, and across a change of strategy and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import Run, Weights, difference, equal, launch, repeatable
from safetensors.torch import load_file

from sppo_lit.distributed.checkpoints import whole_checkpoint

SHARDED = ("--strategy=fsdp", "--devices=2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three iterations of a single process."""
    return launch(tmp_path_factory.mktemp("one"))


def exported(run: Run, part: str) -> Weights:
    return load_file(run.folder / "hf" / part / "model.safetensors")


def same_folders(a: Run, b: Run) -> None:
    """The exported folders hold the same files, equal but for the float error of the weights and the model card."""
    for part in ("policy", "critic"):
        files = [sorted(p.name for p in (run.folder / "hf" / part).iterdir()) for run in (a, b)]
        assert files[0] == files[1]
        for name in set(files[0]) - {"README.md", "model.safetensors"}:
            texts = [(run.folder / "hf" / part / name).read_text() for run in (a, b)]
            assert texts[0] == texts[1], name
        assert difference(exported(a, part), exported(b, part)) <= 1e-5


def test_two_ranks_of_fsdp_equal_one_process(one: Run, tmp_path: Path) -> None:
    two = launch(tmp_path, *SHARDED)
    first, second = two.ranks
    assert equal(first, second)
    assert "Warning" not in two.output, two.output
    assert difference(one.ranks[0], first) <= 1e-5
    for name, value in repeatable(one.metrics).items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    same_folders(one, two)
    saved = whole_checkpoint(two.folder / "checkpoints" / "last.ckpt")["state_dict"]
    for name, weight in first.items():
        assert torch.equal(saved[name], weight), name
        part, _, inner = name.partition(".model.")
        assert torch.equal(exported(two, part)[inner], weight), name


@pytest.mark.parametrize(
    ("iterations", "before", "after"),
    [
        (1, SHARDED, ()),
        (2, SHARDED, ()),
        (1, (*SHARDED, "--checkpoint.form=file"), ()),
        (1, (), SHARDED),
        (2, (), SHARDED),
    ],
    ids=["fsdp-auto in warm-up", "fsdp-auto", "fsdp in one file-auto", "auto-fsdp in warm-up", "auto-fsdp"],
)
def test_a_checkpoint_resumes_under_another_strategy_and_number_of_ranks(
    one: Run, tmp_path: Path, iterations: int, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    start = launch(tmp_path / "start", *before, f"--max_epochs={iterations}")
    end = launch(tmp_path / "end", *after, f"--ckpt_path={start.folder / 'checkpoints' / 'last.ckpt'}")
    assert end.metrics["step"] == 3
    changes = ("fsdp → auto", "2 → 1") if after == () else ("auto → fsdp", "1 → 2")
    told = [line for line in end.output.splitlines() if "resumed with another setting" in line]
    assert len(told) == 1 and f"strategy {changes[0]}, processes {changes[1]}" in told[0], end.output
    assert difference(one.ranks[0], end.ranks[0]) <= 1e-5
    same_folders(one, end)


@pytest.mark.parametrize("form", ["file", "sharded"])
def test_both_forms_resume_bit_for_bit_in_the_same_folder(tmp_path: Path, form: str) -> None:
    """And in the other form than the one that the run began with."""
    whole = launch(tmp_path / "whole", *SHARDED)
    other = "file" if form == "sharded" else "sharded"
    launch(tmp_path / "cut", *SHARDED, "--max_epochs=2", f"--checkpoint.form={form}")
    end = launch(tmp_path / "cut", *SHARDED, f"--checkpoint.form={other}", "--ckpt_path=last")
    assert all(equal(a, b) for a, b in zip(whole.ranks, end.ranks, strict=True))
    checkpoints = end.folder / "checkpoints"
    assert (checkpoints / "last.ckpt").is_dir() == (other == "sharded")
    assert (checkpoints / "previous.ckpt").is_dir() == (form == "sharded")
    for part in ("policy", "critic"):
        assert equal(exported(whole, part), exported(end, part))


def test_validation_under_fsdp_equals_that_of_one_process(one: Run, tmp_path: Path) -> None:
    checkpoint = f"--ckpt_path={one.folder / 'checkpoints' / 'last.ckpt'}"
    sharded = launch(tmp_path, *SHARDED, checkpoint, "--model.evaluation.samples=2", stage="validate")
    alone = launch(tmp_path / "alone", checkpoint, "--model.evaluation.samples=2", stage="validate")
    assert "val/arithmetic/avg_at_k" in alone.metrics, alone.metrics
    assert sharded.metrics == pytest.approx(alone.metrics, abs=1e-6)


def test_fsdp_on_one_process_equals_none(one: Run, tmp_path: Path) -> None:
    assert difference(one.ranks[0], launch(tmp_path, "--strategy=fsdp", "--devices=1").ranks[0]) <= 1e-5


def test_a_checkpoint_of_another_model_is_refused_in_one_line(one: Run, tmp_path: Path) -> None:
    critic = "{path: data/arithmetic/base, init: random, config: {num_hidden_layers: 1}}"
    flags = (f"--model.critic={critic}", *SHARDED, "--max_epochs=4")
    with pytest.raises(AssertionError, match="the checkpoint is of a different model than this recipe's"):
        launch(tmp_path, f"--ckpt_path={one.folder / 'checkpoints' / 'last.ckpt'}", *flags)
