"""The third stage through the command line: success rises, runs repeat and resume exactly, every algorithm learns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_helpers import refused
from run_files import csv_rows

from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.cli.main import main
from sppo_lit.control.episodes import EpisodeBatch
from sppo_lit.control.module import ControlModule
from sppo_lit.control.settings import StartSettings
from sppo_lit.study.runs import find_runs

Recipe = Callable[..., Path]
OF_ONE_SAMPLE = [name for name, spec in ALGORITHMS.items() if spec.memory is None]


@pytest.fixture
def recipe(tmp_path: Path, start: StartSettings) -> Recipe:
    """Writes a recipe of CartPole from the start in the cache."""

    def write(name: str = "tiny", **model: Any) -> Path:
        content = {
            "seed_everything": 2,
            "trainer": {"accelerator": "cpu", "max_epochs": 4, "default_root_dir": str(tmp_path / "runs")},
            "model": {
                "class_path": "sppo_lit.ControlModule",
                "init_args": {
                    "environment": "cartpole",
                    "start": {
                        "expert": {"steps": start.expert.steps, "episodes": start.expert.episodes},
                        "cloning": {"episodes": start.cloning.episodes},
                        "cache": start.cache,
                    },
                    "batch": {"minibatch_size": 8},
                    "ppo": {"epochs": 2},
                    **model,
                },
            },
            "data": {"problems_per_epoch": 16, "held_out": 16},
        }
        file = tmp_path / "recipes" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# CartPole, for tests.\n{yaml.safe_dump(content)}", encoding="utf-8")
        return file

    return write


def rows(tmp_path: Path, name: str = "tiny", version: int = 0) -> list[dict[str, str]]:
    """The metrics of a run without its times."""
    found = csv_rows(tmp_path / "runs" / name / f"version_{version}" / "metrics.csv")
    timed = ("time/", "memory/", "clock/seconds", "rollout/tokens_per_second")
    return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in found]


def test_three_stages_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    start = {"expert.steps": 30_000, "expert.episodes": 64, "cloning.episodes": 64, "cache": tmp_path / "cache"}
    flags = [f"--model.init_args.start.{key}={value}" for key, value in start.items()]
    size = ["--max_epochs", "40", "--trainer.check_val_every_n_epoch", "40", "--data.held_out", "128"]
    folder = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["run", "recipes/control/cartpole.yaml", *flags, *size, *folder]) == 0
    shown = capsys.readouterr().out
    assert shown.index("expert: PPO") < shown.index("start: ") < shown.index("iteration: 64 initial states × 1 = 64")
    success = [float(row["val/accuracy"]) for row in rows(tmp_path, "control-cartpole") if row.get("val/accuracy")]
    assert success[0] < 0.4 and success[-1] > success[0] + 0.3
    [run] = find_runs([tmp_path / "runs"])
    assert (run.label, run.algorithm) == ("control-cartpole", "sppo")
    assert run.series["clock/sequences"][1][-1] == 40 * 64
    film = tmp_path / "film.png"
    assert main(["figure", "film", str(run.folder), "--out", str(film)]) == 0
    numbers = json.loads(film.with_suffix(".json").read_text())["cartpole"]
    assert (numbers["start"]["success"], numbers["control-cartpole"]["success"]) == pytest.approx(
        (success[0], success[-1])
    )
    assert not numbers["start"]["succeeds"] and film.is_file()


@pytest.mark.parametrize("running", [None, 50_000], ids=["fixed", "running"])
def test_the_same_seed_gives_the_same_run_also_resumed(running: int | None, recipe: Recipe, tmp_path: Path) -> None:
    file = recipe(running_normalisation=running)
    assert main(["run", str(file), "--run_name", "whole"]) == 0
    assert main(["run", str(file), "--run_name", "again"]) == 0
    assert rows(tmp_path, "again") == rows(tmp_path, "whole")
    assert main(["run", str(file), "--max_epochs", "2"]) == 0
    assert main(["run", str(file), "--ckpt_path", "last"]) == 0
    both = [tmp_path / "runs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("whole", "tiny")]
    whole, resumed = (torch.load(path, weights_only=True) for path in both)
    assert all(torch.equal(whole["state_dict"][key], value) for key, value in resumed["state_dict"].items())
    normalised = {key: value for key, value in whole["state_dict"].items() if "normaliser.mean" in key}
    assert torch.equal(normalised["policy.normaliser.mean"], normalised["critic.normaliser.mean"])
    if running is not None:
        tokens = sum(float(row["rollout/sampled_tokens"] or 0) for row in rows(tmp_path, "whole"))
        assert whole["state_dict"]["steps_seen"] == 50_000 + tokens
    trained = [row for row in rows(tmp_path, "whole") if row["rollout/reward"]]
    assert [row for row in rows(tmp_path) if row["rollout/reward"]][-2:] == trained[-2:]
    loaded = ControlModule.load_from_checkpoint(both[0])
    assert all(torch.equal(whole["state_dict"][key], value) for key, value in loaded.state_dict().items())
    assert main(["run", "validate", str(file), "--ckpt_path", str(both[0])]) == 0
    [validated] = rows(tmp_path, "tiny-validate")
    assert (
        validated["val/accuracy"] == [row for row in rows(tmp_path, "whole") if row["val/accuracy"]][-1]["val/accuracy"]
    )


@pytest.mark.parametrize("algorithm", OF_ONE_SAMPLE)
def test_every_algorithm_but_those_of_a_memory(algorithm: str, recipe: Recipe, tmp_path: Path) -> None:
    spec = ALGORITHMS[algorithm]
    batch = {"minibatch_size": 8 * spec.samples_per_prompt, "samples_per_prompt": None}
    assert main(["run", str(recipe(algorithm=algorithm, batch=batch)), "--max_epochs", "1"]) == 0
    row = next(row for row in rows(tmp_path) if row["rollout/reward"])
    assert float(row["rollout/sampled_sequences"]) == 16 * (spec.samples_per_prompt + spec.greedy)
    assert float(row["policy/grad_norm"]) > 0
    assert ("critic/loss" in row and row["critic/loss"] != "") == (spec.critic != "none")


def batch_of(observations: torch.Tensor, actions: torch.Tensor, lengths: list[int], **more: Any) -> EpisodeBatch:
    count, steps = actions.shape[:2]
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    zeros, ids = torch.zeros(count), torch.zeros(count, steps, dtype=torch.int64)
    content: dict[str, Any] = {
        "prompt_ids": ids[:, :1],
        "prompt_lengths": torch.ones(count, dtype=torch.int64),
        "response_ids": ids,
        "response_lengths": torch.tensor(lengths),
        "logprobs": torch.zeros(count, steps),
        "versions": ids[:, 0],
        "rewards": zeros,
        "labels": zeros,
        "greedy_rewards": None,
        "scored": [],
        "sampled_tokens": 0,
        "sampled_sequences": count,
        "values": zeros,
        "targets": zeros,
        "advantages": zeros,
        "loss_mask": mask,
        "reference": None,
        "bad_values": 0,
        "observations": observations,
        "actions": actions,
    }
    return EpisodeBatch(**{**content, **more})


def test_gradients_equal_those_written_out() -> None:
    """At the weights that played, the gradient is that of −Σ A·log π over all steps of all episodes / their number."""
    torch.manual_seed(0)
    module = ControlModule("cartpole")
    observations, actions = torch.randn(3, 5, 4), torch.randint(2, (3, 5))
    lengths, advantages, labels = [5, 2, 4], torch.tensor([0.7, -0.4, 0.1]), torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        logprobs = module.policy(observations, actions).logprobs
    batch = batch_of(observations, actions, lengths, logprobs=logprobs, advantages=advantages, targets=labels)
    rows = torch.arange(3)
    module.policy_loss(batch, rows)["policy/loss"].backward()
    module.critic_loss(batch, rows)["critic/loss"].backward()
    mine = [p.grad.double() for network in (module.policy, module.critic) for p in network.parameters()]  # type: ignore[union-attr]

    policy, critic = module.policy.double(), module.critic.double()  # type: ignore[union-attr]
    for parameter in (*policy.parameters(), *critic.parameters()):
        parameter.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for episode, length in enumerate(lengths):
        for t in range(length):
            logits = policy.body(policy.normaliser(observations[episode, t].double()))
            total = total - advantages[episode] * logits.log_softmax(0)[actions[episode, t]]
    (total / sum(lengths)).backward()
    values = torch.sigmoid(critic.body(critic.normaliser(observations[:, 0].double())).squeeze(1))
    (-(labels * values.log() + (1 - labels) * (1 - values).log()).mean()).backward()
    written_out = [p.grad for network in (policy, critic) for p in network.parameters()]
    for got, wanted in zip(mine, written_out, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_the_shaped_reward_is_paid_step_by_step(recipe: Recipe, tmp_path: Path) -> None:
    file = recipe(algorithm="ppo", reward="dense", advantage={"gamma": 0.9, "lam": 0.8})
    assert main(["run", str(file), "--max_epochs", "1"]) == 0
    row = next(row for row in rows(tmp_path) if row["rollout/reward"])
    assert float(row["rollout/reward"]) > 10 > 1 >= float(row["rollout/accuracy"]), "the sum over steps, the outcome"


@pytest.mark.parametrize(
    ("changes", "flags", "parts"),
    [
        ({"environment": "pong"}, [], ["model.environment 'pong' is unknown", "cartpole", "hopper"]),
        ({"algorithm": "spo"}, [], ["SPO remembers prompts, but no initial state comes again"]),
        ({"reward": "dense"}, [], ["model.reward dense needs a critic of every step; Sequence-Level PPO has none"]),
        ({"samples": 0}, [], ["samples is 0", "at least 1"]),
        ({"hidden": []}, [], ["hidden", "at least one layer"]),
        ({}, ["--model.init_args.start.cloning.every", "0"], ["model.start.cloning: every is 0", "at least 1"]),
        ({"running_normalisation": 0}, [], ["running_normalisation", "at least 1"]),
        ({"batch": {"minibatch_size": 5}}, [], ["does not divide the 16 sequences"]),
        ({}, ["--strategy", "ddp", "--devices", "2"], ["runs in one process on the CPU"]),
        ({}, ["--data.held_out", "0"], ["held_out is 0"]),
    ],
)
def test_bad_input(
    changes: dict[str, Any],
    flags: list[str],
    parts: list[str],
    recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(capsys, tmp_path, ["run", recipe(**changes), *flags], *parts)


def test_missing_physics_is_named(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    refused(
        capsys,
        tmp_path,
        ["run", recipe(environment="hopper")],
        "stable-baselines3 and gymnasium",
        "'sppo-lit[control]'",
    )


def test_the_doctor_is_for_language_models(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["doctor", recipe()], "the doctor examines runs of language models")
