"""Every recipe parses completely, has a title, and the paper's recipes say what the paper says."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppo_lit.algorithms.batching import check_minibatch
from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.cli.main import translate
from sppo_lit.cli.recipe_checks import check_trainer
from sppo_lit.cli.recipe_cli import settings_of
from sppo_lit.errors import InputError
from sppo_lit.problems.procedural import procedural
from sppo_lit.problems.sources import SOURCES

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # kept back by `run`
ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if "study" not in p.parts)
PAPER = {
    "deepscaler_1.5b/sppo": {
        "policy": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "critic": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "data": "deepscaler",
        "prompts": 256,
        "minibatch": 128,
        "critic_lr": 5e-6,
        "weight_decay": 0.01,
        "max_prompt": 1024,
        "iterations": 1000,
        "avg_at": 16,
    },
    "dapo17k_7b/sppo": {
        "policy": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "critic": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "data": "dapo_math_17k",
        "prompts": 512,
        "minibatch": 32,
        "critic_lr": 1e-5,
        "weight_decay": 0.1,
        "max_prompt": 2048,
        "iterations": 200,
        "avg_at": 8,
    },
}
PAPER["dapo17k_7b/sppo_small_critic"] = {
    **PAPER["dapo17k_7b/sppo"],
    "critic": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}


@cache
def parse(recipe: str | Path, *flags: str, stage: str = "fit") -> Any:
    """All settings of a recipe, defaults included.

    Raises:
        InputError: as the command line would show it.
    """
    return settings_of(translate([stage, str(recipe), *flags]))


def name(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


@pytest.fixture(autouse=True)
def own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed that parsing sets does not reach other tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", os.environ.get("PL_GLOBAL_SEED", "0"))


def test_there_are_the_recipes_that_the_readme_names() -> None:
    assert {name(p) for p in RECIPES} >= {"quickstart", "arithmetic/warmup", "gsm8k/sppo", *PAPER}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe(path: Path) -> None:
    title = path.read_text(encoding="utf-8").partition("\n")[0]
    assert title.startswith("# ") and title.endswith(".") and 30 < len(title) <= 125
    settings = parse(path, stage="validate" if path.stem == "benchmarks" else "fit")
    assert settings.seed_everything is not None
    check_trainer(settings.trainer)
    model = settings.model.get("init_args", settings.model)
    spec = ALGORITHMS[model.get("algorithm", "sppo")]
    samples = model.batch.samples_per_prompt or spec.samples_per_prompt
    assert settings.data.problems_per_epoch * samples % model.batch.minibatch_size == 0
    if path.parent.name == "control":
        return
    assert settings.data.val, "no held-out problems"
    trains = [settings.data.train] if path.stem != "benchmarks" else []
    for problem_set in (*trains, *settings.data.val):
        assert procedural(problem_set.path) or problem_set.path in SOURCES or (ROOT / problem_set.path).is_file()
    for source in (model.policy, model.get("critic")):
        if source is not None and source.path.startswith("data/"):
            assert (ROOT / source.path / "config.json").is_file()
    assert parse(path, stage="validate").model == settings.model


@pytest.mark.parametrize("key", PAPER)
def test_recipe_says_what_the_paper_says(key: str) -> None:
    paper, settings = PAPER[key], parse(ROOT / "recipes" / f"{key}.yaml")
    model, data, trainer = settings.model, settings.data, settings.trainer
    assert model.algorithm == "sppo"
    assert (model.policy.path, model.critic.path) == (paper["policy"], paper["critic"])
    assert model.policy.init == model.critic.init == "pretrained"
    assert (data.train.path, data.problems_per_epoch) == (paper["data"], paper["prompts"])
    assert model.batch.minibatch_size == paper["minibatch"]
    assert (data.max_prompt_tokens, model.sampling.max_new_tokens) == (paper["max_prompt"], 8192)
    assert trainer.max_epochs == paper["iterations"]
    for optimizer, lr in ((model.policy_optimizer, 1e-6), (model.critic_optimizer, paper["critic_lr"])):
        assert optimizer.lr == pytest.approx(lr)
        assert (optimizer.schedule, optimizer.warmup_iterations, optimizer.clip_norm) == ("constant", 0, 1.0)
    assert model.policy_optimizer.weight_decay == paper["weight_decay"]
    assert (model.sampling.temperature, model.sampling.top_p, model.sampling.top_k) == (0.6, 1.0, 0)
    spec, ppo = ALGORITHMS["sppo"], model.ppo
    assert (ppo.clip_low, ppo.clip_high) == (None, None), "the algorithm's own"
    assert (spec.clip_low, spec.clip_high, ppo.dual_clip) == (0.2, 0.2, 3.0)
    assert (model.ppo.epochs, model.ppo.critic_warmup, model.ppo.aggregation) == (1, 0, None)
    assert trainer.precision == "bf16-mixed" and model.memory.gradient_checkpointing
    assert [s.path for s in data.val] == ["aime24", "aime25", "amc23", "math500", "minerva"]
    assert (model.evaluation.samples, model.evaluation.temperature) == (paper["avg_at"], 0.6)
    assert model.evaluation.max_new_tokens in (None, 8192)


def path_of(folder: str, recipe: str) -> Path:
    return ROOT / "recipes" / folder / f"{recipe}.yaml"


FOLDERS = ("arithmetic", "gsm8k", "deepscaler_1.5b", "dapo17k_7b")
OWN = ("algorithm", "critic", "critic_optimizer", "ppo.critic_warmup", "kl", "batch.minibatch_size", "policy_optimizer")
"""What may differ between an algorithm's recipe and that of Sequence-Level PPO beside it."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_but_the_algorithm_changes_between_the_recipes_of_a_folder(folder: str) -> None:
    first = parse(ROOT / "recipes" / folder / "sppo.yaml")
    paper = folder in ("deepscaler_1.5b", "dapo17k_7b")  # it gives all algorithms equal prompts
    variants = [(name, False) for name in ALGORITHMS]
    variants += [(name, True) for name, spec in ALGORITHMS.items() if paper and spec.samples_per_prompt > 1]
    for algorithm, equal_sequences in variants:
        spec = ALGORITHMS[algorithm]
        suffix = "_equal_sequences" if equal_sequences else ""
        other = parse(ROOT / "recipes" / folder / f"{algorithm}{suffix}.yaml")
        assert other.model.algorithm == algorithm
        keys = first.model.keys()  # leaves, such as batch.minibatch_size
        shared = [key for key in keys if not any(f"{key}.".startswith(f"{own}.") for own in OWN)]
        assert {key: other.model[key] for key in shared} == {key: first.model[key] for key in shared}
        assert other.model.policy_optimizer.clip_norm == first.model.policy_optimizer.clip_norm
        assert other.data.val == first.data.val
        train = other.data.train.clone()
        if spec.memory is not None and train.path == "arithmetic":
            assert train.limit, "prompts have to come again"
            train.limit = first.data.train.limit
        assert train == first.data.train
        assert other.trainer == first.trainer
        sequences = other.data.problems_per_epoch * spec.samples_per_prompt
        if paper and not equal_sequences:
            assert other.data.problems_per_epoch == first.data.problems_per_epoch
            steps = sequences // other.model.batch.minibatch_size
            assert steps == first.data.problems_per_epoch // first.model.batch.minibatch_size
            assert (other.model.kl.coef > 0) == (algorithm in ("rloo", "remax"))
        else:
            assert abs(sequences / first.data.problems_per_epoch - 1) < 0.1, "as much sampling per iteration"
        assert "80 GB GPU" in path_of(folder, "sppo").read_text(encoding="utf-8") or not paper
        assert (other.model.ppo.critic_warmup > 0) == (spec.critic == "token"), "as the paper warms its critic up"


def test_benchmarks_of_a_model_never_trained_here() -> None:
    flags = ("--model.policy.path", "owner/model", "--model.evaluation.samples", "16")
    settings = parse("recipes/benchmarks.yaml", *flags, stage="validate")
    sets = [(s.path, s.split) for s in settings.data.val]
    assert sets == [(x, None) for x in ("aime24", "aime25", "amc23", "math500", "minerva")] + [("gsm8k", "test")]
    assert settings.model.policy.path == "owner/model"
    evaluation = settings.model.evaluation
    assert (evaluation.samples, evaluation.temperature, evaluation.greedy) == (16, 0.6, False)
    some = parse("recipes/benchmarks.yaml", "--data.val", "[{path: aime24}, {path: math500}]", stage="validate")
    assert [s.path for s in some.data.val] == ["aime24", "math500"]
    with pytest.raises(InputError, match=r"benchmarks\.yaml: data\.train\.path is missing"):
        parse("recipes/benchmarks.yaml")


def test_gsm8k_without_the_hub() -> None:
    settings = parse(
        "recipes/gsm8k/sppo.yaml",
        *("--model.policy.path", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        *("--data.train.path", "train.jsonl", "--data.train.limit=100"),
        *("--data.val", "[{path: test.jsonl, limit: 64}]"),
        *("--max_epochs", "3", "--accelerator=cpu", "--data.problems_per_epoch", "64"),
        *("--completions.every_n_iterations", "1", "--run_name", "trial"),
    )
    assert settings.model.policy.path == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (settings.data.train.path, settings.data.train.limit) == ("train.jsonl", 100)
    assert [(s.path, s.limit) for s in settings.data.val] == [("test.jsonl", 64)]
    assert (settings.trainer.max_epochs, settings.trainer.accelerator) == (3, "cpu")
    assert settings.completions.every_n_iterations == 1
    assert settings.run_name == "trial"


def test_flags_of_a_larger_machine() -> None:
    flags = ("--strategy", "ddp", "--devices", "4", "--precision", "bf16-mixed", "--num_nodes", "2")
    trainer = parse("recipes/quickstart.yaml", *flags).trainer
    assert (trainer.strategy, str(trainer.devices), trainer.num_nodes) == ("ddp", "4", 2)
    assert trainer.precision == "bf16-mixed"


def test_runs_are_named_after_their_recipe() -> None:
    assert parse("recipes/quickstart.yaml").run_name == "quickstart"
    assert parse("recipes/gsm8k/sppo.yaml").run_name == "gsm8k-sppo"
    assert parse("recipes/dapo17k_7b/sppo_small_critic.yaml").run_name == "dapo17k_7b-sppo_small_critic"


def test_comments_apart_recipes_say_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    """A recipe is a few lines: no key twice, none that YAML reads as something else."""
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40
        keys = {"seed_everything", "trainer", "model", "data", "completions", "checkpoint", "progress"}
        assert yaml.safe_load(text).keys() <= keys


def test_a_minibatch_must_divide_the_iteration() -> None:
    check_minibatch(4, samples=2, size=8)
    with pytest.raises(InputError, match="larger than the 6 sequences"):
        check_minibatch(3, samples=2, size=8)
    with pytest.raises(InputError, match="does not divide the 10 sequences"):
        check_minibatch(5, samples=2, size=8)
