"""Evaluation in fit, before training, in validate and over ranks; completions on disk and on screen."""

import json
import re

import pytest
import torch
from run_files import csv_rows

from sppo_lit.callbacks import (
    CompletionsTable,
    Curves,
    Evaluation,
    HuggingFaceExport,
    IterationCheckpoint,
    RunProgress,
    RunSummary,
)
from sppo_lit.callbacks.completions import pick, table
from sppo_lit.callbacks.evaluation import table as results_table
from sppo_lit.training.metrics import flatten
from sppo_lit.utils.console import console, shorten, visible


def rows(folder):
    return {int(r["step"]): r for r in csv_rows(folder / "metrics.csv") if r["val/accuracy"]}


def completions(folder, name):
    return [json.loads(line) for line in (folder / "evaluations" / name).read_text().splitlines()]


def test_accuracy_is_logged_at_its_iteration_and_shown(fake, screen):
    evaluation = Evaluation()
    trainer, _, folder = fake([evaluation], epochs=4, check_val_every_n_epoch=2)
    logged = rows(folder)
    assert sorted(logged) == [0, 2, 4], "before training, then every second iteration"
    assert [float(logged[i]["val/accuracy"]) for i in (0, 2, 4)] == [0, 0.5, 1]
    assert float(logged[2]["val/hard_2/avg_at_k"]) == 0.75 and float(logged[2]["val/hard_2/pass_at_k"]) == 1
    assert float(logged[2]["val/easy/greedy_ci"]) == pytest.approx(0.35, abs=1e-3)
    assert evaluation.history == [(0, 0.0), (2, 0.5), (4, 1.0)]
    assert trainer.callback_metrics["val/accuracy"] == 1
    shown = screen()
    assert "Evaluation before training" in shown and "Evaluation after iteration 4" in shown
    assert "50.0 ±35.0" in shown and "+100.0" in shown


def test_every_completion_is_written(fake):
    _, _, folder = fake([Evaluation()], epochs=1)
    names = sorted(p.name for p in (folder / "evaluations").iterdir())
    assert names == [f"{s}-iteration-{i}.jsonl" for s in ("easy", "hard_2") for i in (0, 1)]
    lines = completions(folder, "easy-iteration-1.jsonl")
    assert len(lines) == 4 * 3 and [x["sample"] for x in lines[:3]] == [-1, 0, 1]
    assert {"prompt", "gold", "text", "answer", "reward", "reason", "tokens", "finished", "value"} <= set(lines[0])
    assert sum(x["reward"] for x in lines if x["greedy"]) == 1
    without = fake([Evaluation(jsonl=False)], epochs=1)[2]
    assert not (without / "evaluations").exists()


def test_validate_gives_the_accuracy_of_training(fake, screen):
    _, module, _ = fake([Evaluation()], epochs=2)
    trainer = fake.trainer([Evaluation()])
    result = trainer.validate(module, fake.problems(), verbose=False)
    assert result[0]["val/accuracy"] == 0.5 and result[0]["val/easy/greedy"] == 0.5
    assert "change" not in screen().splitlines()[-6]


def test_samples_only(fake):
    module = fake.module()
    module.greedy = False
    trainer, _, _ = fake([Evaluation()], epochs=2, module=module)
    assert trainer.callback_metrics["val/accuracy"] == pytest.approx((0.5 + 0.75) / 2), "avg@k where nothing is greedy"


def test_several_sets_have_a_mean(fake, screen):
    """Each set counts once, whatever its size; the last row of the table, and in the log."""
    sets = {
        "aime24": {"problems": 30.0, "k": 8.0, "avg_at_k": 0.2, "avg_at_k_ci": 0.06, "pass_at_k": 0.5, "maj_at_k": 0.3},
        "math500": {"problems": 500.0, "k": 8.0, "avg_at_k": 0.8, "avg_at_k_ci": 0.08, "pass_at_k": 0.9, "greedy": 0.7},
    }
    for result in sets.values():
        result |= {"length": 100.0, "truncation_rate": 0.5}
    flat = flatten(sets)
    assert flat["val/mean/avg_at_k"] == pytest.approx(0.5) and flat["val/mean/pass_at_k"] == pytest.approx(0.7)
    assert flat["val/mean/avg_at_k_ci"] == pytest.approx(0.05) and flat["val/mean/problems"] == 530
    assert "val/mean/greedy" not in flat and "val/mean/maj_at_k" not in flat, "not all sets have them"
    assert flat["val/accuracy"] == pytest.approx((0.2 + 0.7) / 2)
    console.print(results_table(sets, {}, 0, training=False))
    lines = screen().splitlines()
    assert lines[0].strip() == "Evaluation (%)" and "avg@8" in lines[1]
    assert "mean" in lines[-1] and "50.0 ±5.0" in lines[-1] and "530" in lines[-1]
    assert "val/mean/avg_at_k" not in flatten({"only": sets["aime24"]})


def test_all_metrics_and_completions_fit_in_80_columns(screen, fake, monkeypatch):
    monkeypatch.setattr(console, "_width", 80)
    each = {"problems": 1319.0, "k": 16.0, "length": 12345.0, "truncation_rate": 0.123}
    for metric in ("greedy", "avg_at_k", "pass_at_k", "maj_at_k"):
        each |= {metric: 0.5, f"{metric}_ci": 0.134}
    console.print(results_table({"aime24": each, "math500": each}, {"aime24": each, "math500": each}, 10))
    lines = screen().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80 and "…" not in "".join(lines)
    assert lines[1].split() == [
        "set",
        "problems",
        "greedy",
        "avg@16",
        "pass@16",
        "maj@16",
        "tokens",
        "truncated",
        "change",
    ]
    scored = fake.scored("a problem of many words " * 4, True, text="words of a response " * 20)
    console.print(table([scored], 1))
    shown = screen()
    assert re.search(r"│ prompt +│ response +│ gold +│ answer +│ verdict +│", shown), "no heading is broken"
    assert re.search(r"│ V 0\.50  A – +│", shown)


def test_resumed_run_keeps_the_first_evaluation(fake):
    _, _, folder = fake([Evaluation(), IterationCheckpoint()], epochs=2)
    again = Evaluation()
    fake([again], epochs=3, ckpt_path=folder / "checkpoints" / "last.ckpt")
    assert again.history == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert again.first["easy"]["greedy"] == 0


def test_completions_table(fake, screen):
    fake([CompletionsTable(every_n_iterations=2, samples=3)], epochs=4, num_sanity_val_steps=0)
    shown = screen()
    assert [f"Completions of iteration {i}" in shown for i in (1, 2, 3, 4)] == [True, True, False, True]
    assert "✓ correct" in shown and "✗ wrong" in shown and "+0.50" in shown and r"\boxed{7}" in shown


def test_text_of_a_model_can_do_nothing_to_the_terminal(screen, fake):
    text = "[red]x[/red] [/nonsense] \x1b[2J\x07\u202e\u200b\ud800 a\tb\r\nc \\boxed{\\frac{1}{2}} bye"
    console.print(table([fake.scored("[bold]k", True, text=text)], 1))
    shown = screen()
    assert "[red]x[/red] [/nonsense]" in shown and "[bold]k" in shown
    assert not any(c in shown for c in "\x1b\x07\u202e\u200b\ud800")
    assert "␛[2J␇\\u202e\\u200b\\ud800" in shown.replace("\n", "")
    assert visible("a\tb\r\nc") == "a    b\nc"


def test_the_end_of_a_long_response_is_shown(screen, fake):
    console.print(table([fake.scored("k", True, text="start " + "x" * 5000 + r" \boxed{7}")], 1))
    shown = screen()
    assert r"\boxed{7}" in shown and "start" not in shown and len(shown.splitlines()) < 20
    assert shorten("abcdefghij", 5, "both") == "ab…ij" and shorten("abc", 3) == "abc"


def test_both_verdicts_are_picked(fake):
    scored = [fake.scored(str(i), i > 7) for i in range(10)]
    assert [s.verdict.reward for s in pick(scored, 4)] == [1, 0, 1, 0]
    assert len(pick(scored[:5], 4)) == 4 and pick([], 4) == []


class Half(torch.utils.data.Sampler):
    """The problems of one rank: an uneven part, the third one on both."""

    def __init__(self, problems):
        self.problems = problems

    def __iter__(self):
        rank = torch.distributed.get_rank()
        return iter([0, 1, 2] if rank == 0 else [2, 3])

    def __len__(self):
        return 3 - torch.distributed.get_rank()


def _on_rank(rank, folder, conftest):
    import os
    import sys

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    sys.path.insert(0, conftest)
    import conftest as c

    module, data = c.FakeModule(), c.Problems()
    keys = [[f"{name}-{i}" for i in range(4)] for name in data.val_names]
    loaders = [torch.utils.data.DataLoader(k, sampler=Half(k), batch_size=1, collate_fn=list) for k in keys]
    data.val_dataloader = lambda: loaders
    evaluation = Evaluation()
    callbacks = [RunProgress(), evaluation, CompletionsTable(), HuggingFaceExport(), Curves(), RunSummary()]
    settings = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    trainer = c.make_trainer(folder, [*callbacks, IterationCheckpoint()], 2, **settings)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/accuracy"] == 0.5
    assert evaluation.last["easy"]["problems"] == 4 and evaluation.last["hard/2"]["avg_at_k"] == 0.75


@pytest.mark.slow
def test_ranks_together_give_one_result_and_one_file(tmp_path, monkeypatch):
    """All callbacks of a run under two processes with uneven parts of the problems."""
    import socket
    from pathlib import Path

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(s.getsockname()[1]))
    torch.multiprocessing.spawn(_on_rank, (str(tmp_path), str(Path(__file__).parent)), nprocs=2)
    (file,) = tmp_path.rglob("easy-iteration-2.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [x["problem"] for x in lines if x["greedy"]] == ["easy-0", "easy-1", "easy-2", "easy-3"]
    run = file.parent.parent
    assert {"checkpoints", "hf", "curves.png", "metrics.csv", "evaluations"} <= {p.name for p in run.iterdir()}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
