"""Which problems an iteration trains on: a pure function of seed, position and rank, with every loss counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from grouped import grouped

from sppo_lit.errors import InputError, Stopped
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.settings import ModelSource
from sppo_lit.training.datamodule import MathDataModule, ProblemSet
from sppo_lit.training.supervised import SupervisedModule


class Letters:
    """A tokenizer of one token a character."""

    chat_template = None

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


@pytest.fixture(scope="module")
def verifier() -> Iterator[VerifierPool]:
    with_one = VerifierPool(workers=1)
    yield with_one
    with_one.close()


@pytest.fixture
def opened(verifier: VerifierPool) -> Any:
    """Makes a data module as it stands on one rank when training begins."""

    def open_(train: ProblemSet, *, seed: int = 3, rank: int = 0, world: int = 1, **options: Any) -> MathDataModule:
        data = MathDataModule(train, **options)
        unused = dict.fromkeys(("validation_results", "exports", "sources", "adapter_base"), dict)
        unused |= dict.fromkeys(("evaluation", "last_rollouts", "iteration", "evaluates_all_at_start"))
        module = SimpleNamespace(seed=seed, tokenizer=Letters(), verifier=verifier, **unused)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            lightning_module=module, global_rank=rank, world_size=world, is_global_zero=rank == 0
        )
        data.setup("fit")
        return data

    return open_


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty problems, one with a gold answer that nothing equals and one with a very long prompt."""
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(20)]
    rows[4]["answer"] = "\\frac{"
    rows[9]["problem"] = "What, after all of this, is nine? " * 40
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def keys(entries: Any) -> list[str]:
    return [problem.key for problem, _ in entries]


def joined(slices: list[list[str]]) -> list[str]:
    return [key for part in slices for key in part]


def test_iteration_i_trains_on_its_own_slice_of_an_endless_stream(opened: Any) -> None:
    data = opened(ProblemSet("arithmetic"), problems_per_epoch=6)
    slices = [keys(data.problems_of(i)) for i in range(4)]
    assert joined(slices) == keys(data.stream.take(0, 24)) and len(set(joined(slices))) == 24
    assert keys(opened(ProblemSet("arithmetic"), problems_per_epoch=6).problems_of(3)) == slices[3]
    assert not set(slices[0]) & set(keys(opened(ProblemSet("arithmetic"), seed=4, problems_per_epoch=6).problems_of(0)))


def test_generated_prompts_too_long_are_replaced_so_that_iterations_keep_their_size(opened: Any) -> None:
    data = opened(ProblemSet("arithmetic"), arithmetic=ArithmeticTask(1, 4), problems_per_epoch=40, max_prompt_tokens=9)
    entries = data.problems_of(0)
    assert len(set(keys(entries))) == 40 and max(len(ids) for _, ids in entries) <= 9
    with pytest.raises(InputError, match="longer than max_prompt_tokens = 3"):
        opened(ProblemSet("arithmetic"), max_prompt_tokens=3)


def test_every_pass_over_a_finite_set_is_another_order_of_all_of_it(opened: Any, file: Path) -> None:
    data = opened(ProblemSet(str(file)), problems_per_epoch=6, max_prompt_tokens=200)
    first, second = keys(data.stream.take(0, 18)), keys(data.stream.take(18, 18))
    assert len(set(first)) == 18 and sorted(first) == sorted(second) and first != second
    assert first != sorted(first)
    assert keys(data.problems_of(4)) == (first + second)[24:30], "an iteration may begin at any position"
    assert (
        keys(opened(ProblemSet(str(file)), problems_per_epoch=7, max_prompt_tokens=200).problems_of(2))
        == (first + second)[14:21]
    ), "and lie across two passes"
    assert keys(opened(ProblemSet(str(file)), seed=4, max_prompt_tokens=200).stream.take(0, 18)) != first


def test_a_streamed_source_goes_on_where_a_run_stopped(opened: Any, file: Path) -> None:
    source = ProblemSet(str(file), streaming=True)
    data = opened(source, problems_per_epoch=7, max_prompt_tokens=200)
    whole = [keys(data.problems_of(i)) for i in range(6)]
    assert joined(whole)[:18] == joined(whole)[18:36], "in source order, again and again"
    assert keys(opened(source, problems_per_epoch=7, max_prompt_tokens=200).problems_of(4)) == whole[4]
    assert keys(data.problems_of(1)) == whole[1], "and back"


def test_a_streamed_source_longer_than_a_chunk_is_read_whole(opened: Any, file: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sppo_lit.training.datamodule._Streamed.CHUNK", 4)
    data = opened(ProblemSet(str(file), streaming=True), max_prompt_tokens=200)
    assert len(set(keys(data.stream.take(0, 18)))) == 18


@pytest.mark.parametrize("streaming", [False, True])
def test_ranks_share_an_iteration_without_overlap(opened: Any, file: Path, streaming: bool) -> None:
    source = ProblemSet(str(file), streaming=streaming)
    whole = keys(opened(source, problems_per_epoch=8, max_prompt_tokens=200).problems_of(1))
    options = {"world": 2, "problems_per_epoch": 8, "max_prompt_tokens": 200}
    shares = [keys(opened(source, rank=rank, **options).problems_of(1)) for rank in (0, 1)]
    assert [len(s) for s in shares] == [4, 4] and sorted(joined(shares)) == sorted(whole)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_dropped_is_counted_and_shown(
    opened: Any, file: Path, streaming: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(ProblemSet(str(file), streaming=streaming), max_prompt_tokens=200)
    problems = [problem for problem, _ in data.stream.take(0, 19)]
    said = " ".join(capsys.readouterr().out.split())
    assert "18 problems; dropped 1 gold_unparsable, 1 prompt_too_long" in said
    assert not any("frac" in p.answer or "after all" in p.prompt for p in problems)


def test_validation_sets_have_names_of_their_own(opened: Any, file: Path) -> None:
    val = [ProblemSet("arithmetic", limit=5), ProblemSet(str(file), name="sums"), ProblemSet("arithmetic", limit=7)]
    data = opened(ProblemSet("arithmetic"), val=val, max_prompt_tokens=200)
    assert {name: len(entries) for name, entries in data.val_sets.items()} == {
        "arithmetic": 5,
        "sums": 18,
        "arithmetic_2": 7,
    }
    train = {problem.prompt for problem, _ in data.stream.take(0, 500)}
    assert not train & {problem.prompt for problem, _ in data.val_sets["arithmetic"]}


def test_a_set_without_one_checkable_answer_is_refused(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text(json.dumps({"problem": "Prove it.", "answer": "\\frac{"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"words\.jsonl: none of its 1 gold answers can be checked"):
        opened(ProblemSet(str(path)))


def test_training_may_be_limited_to_some_generated_problems_or_to_another_split(opened: Any) -> None:
    few = opened(ProblemSet("arithmetic", limit=5), problems_per_epoch=5)
    first, second = keys(few.problems_of(0)), keys(few.problems_of(1))
    assert len(set(first)) == 5 and sorted(first) == sorted(second)
    assert all(
        key.startswith("arithmetic/val/") for key in keys(opened(ProblemSet("arithmetic", "val")).problems_of(0))
    )


def test_a_signal_ends_a_large_iteration_before_all_its_problems_are_made(opened: Any) -> None:
    data = opened(ProblemSet("arithmetic"), problems_per_epoch=1_000_000)
    taken: list[tuple[int, int]] = []
    data.stream.take = lambda start, count: taken.append((start, count)) or []

    def check() -> None:
        if len(taken) == 2:
            raise Stopped(15)

    with pytest.raises(Stopped):
        data.problems_of(1, check)
    assert taken == [(1_000_000, 1024), (1_001_024, 1024)]


@pytest.mark.parametrize("path", ["arithmetic", "train.jsonl"])
@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_problem_is_refused(path: str, limit: int) -> None:
    with pytest.raises(InputError, match=f"{path}: limit is {limit}; it must be at least 1"):
        ProblemSet(path, limit=limit)


class Collected(SupervisedModule):
    """Remembers what it was asked to collect."""

    asked: list[list[str]]

    def on_train_start(self) -> None:
        super().on_train_start()
        collect = self.collector.collect

        def remembered(problems: Any, iteration: int) -> Any:
            self.asked.append(keys(problems))
            return collect(problems, iteration)

        self.collector.collect = remembered


def test_a_real_trainer_collects_the_slices_in_turn() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    module = Collected(ModelSource("data/arithmetic/base", "random", sizes), **grouped(minibatch_size=8))
    module.asked = []
    data = MathDataModule(ProblemSet("arithmetic"), problems_per_epoch=8, val=[ProblemSet("arithmetic", limit=2)])
    options: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    pl.Trainer(max_epochs=3, limit_val_batches=0, accelerator="cpu", **options).fit(module, data)
    assert data.stream is not None
    assert module.asked == [keys(data.stream.take(8 * i, 8)) for i in range(3)]
