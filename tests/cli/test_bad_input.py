"""Each mistake of a user is answered with one clear line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import BASE, SMALL, recipe, refused
from lightning.pytorch import LightningModule
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CLIPConfig, PreTrainedTokenizerFast, T5Config

import sppo_lit
from sppo_lit.callbacks import checkpoint as checkpoint_callback
from sppo_lit.cli.main import main, run_settings
from sppo_lit.cli.renamed import CLASSES, SETTINGS
from sppo_lit.rollout import vllm_engine
from sppo_lit.settings import ModelSource
from sppo_lit.training.module import SPPOModule

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny policy with weights."""
    folder = tmp_path / "policy"
    config = AutoConfig.from_pretrained(BASE)
    for name, value in SMALL.items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints folder of a finished run of one iteration."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["run", str(recipe(folder, {"trainer.max_epochs": 1}))]) == 0
    return folder / "runs" / "tiny" / "version_0" / "checkpoints"


# -------------------------------------------------------------------------------------------------- recipes and flags


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"modle": 1}, ("tiny.yaml: unknown key modle", "did you mean model", "correct or remove")),
        ({"model.minibatchsize": 1}, ("unknown key model.minibatchsize", "did you mean model.batch.minibatch_size")),
        ({"model.sampling.temprature": 1}, ("unknown key model.sampling.temprature", "model.sampling.temperature")),
        ({"model.lora": {"rank": "many"}}, ("tiny.yaml: model.lora.rank: 'many'", "must be int")),
        ({"model.critic": {"path": "x", "config": 5}}, ("tiny.yaml: model.critic.config: '5'", "must be")),
        ({"trainer.strategy": "ddp_spawn"}, ("--strategy ddp_spawn is not supported", "use ddp")),
        ({"data.val": [{"path": "x", "limit": "few"}]}, ("tiny.yaml: data.val.limit: 'few'", "int or null")),
        ({"data.val": [{"limit": 5}]}, ("tiny.yaml: data.val: path is missing in it",)),
        ({"data.val": [{"pth": "x"}]}, ("tiny.yaml: data.val: unknown key pth",)),
        ({"model.batch.minibatch_size": "many"}, ("tiny.yaml: model.batch.minibatch_size: 'many'", "int")),
        ({"trainer.max_epochs": "long"}, ("tiny.yaml: trainer.max_epochs: 'long'", "int")),
        ({"model.policy": "folder"}, ("tiny.yaml: model.policy: 'folder' is not a mapping", "--model.policy.path")),
        ({"model": ...}, ("tiny.yaml: model.policy.path is missing",)),
        ({"model": None}, ("tiny.yaml: model.policy.path is missing",)),
        ({"model": "text"}, ("tiny.yaml: model: 'text' is not a mapping",)),
        ({"data": ...}, ("tiny.yaml: data.train.path is missing",)),
        ({"model": {"class_path": "sppo_lit.nothing.Here"}}, ("model: class_path sppo_lit.nothing.Here",)),
        (
            {"model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}},
            ("class_path", "BoringModel", "SPPOModule"),
        ),
        ({"model.algorithm": "ppp"}, ("model.algorithm 'ppp' is unknown", "sppo")),
        ({"seed_everything": -1}, ("seed_everything is -1", "from 0 to 4,294,967,295")),
        ({"seed_everything": 10**20}, ("seed_everything is 100000000000000000000", "from 0 to 4,294,967,295")),
        ({"model.sampling.top_p": 5.0}, ("model.sampling: top_p is 5.0", "above 0 and at most 1")),
        ({"model.sampling.temperature": -1.0}, ("model.sampling: temperature is -1.0", "at least 0")),
        ({"model.sampling.top_k": -1}, ("model.sampling: top_k is -1", "at least 0")),
        ({"model.sampling.max_new_tokens": 0}, ("model.sampling: max_new_tokens is 0", "at least 1")),
        ({"model.evaluation.temperature": -1.0}, ("model.evaluation: temperature is -1.0", "at least 0")),
        ({"data.problems_per_epoch": 10**11}, ("problems_per_epoch is 100,000,000,000", "at most 1,000,000")),
        ({"model.sampling.temperature": 0.0}, ("model.sampling.temperature is 0", "set it above 0")),
        ({"model.evaluation": {"samples": 4, "temperature": 0.0}}, ("4 samples at temperature 0",)),
        (
            {"model.batch.minibatch_size": 16},
            ("minibatch_size 16 is larger than the 8 sequences", "problems_per_epoch 8"),
        ),
        ({"model.batch.minibatch_size": 3}, ("minibatch_size 3 does not divide the 8 sequences",)),
        ({"model.batch.minibatch_size": 0}, ("minibatch_size is 0", "at least 1")),
        ({"data.problems_per_epoch": 0}, ("data.problems_per_epoch is 0", "at least 1")),
        ({"trainer.gradient_clip_val": 1.0}, ("gradient_clip_val", "model.policy_optimizer.clip_norm")),
        ({"trainer.accumulate_grad_batches": 2}, ("accumulate_grad_batches", "model.memory.micro_batch_tokens")),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_recipe(
    changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], *parts)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--model.minibatchsize", "3"],
            ("unknown flag --model.minibatchsize", "did you mean --model.batch.minibatch_size"),
        ),
        (["--model.minibatch", "4"], ("unknown flag --model.minibatch",)),  # no guessing of cut-off flags
        (
            ["--minibatch_size=3"],
            ("unknown flag --minibatch_size ", "did you mean --model.batch.minibatch_size", "--help"),
        ),
        (["--data.path", "x"], ("unknown flag --data.path", "did you mean --data.train.path")),
        (["--model.batch.minibatch_size", "many"], ("--model.batch.minibatch_size: 'many'", "int")),
        (["--max_epochs", "long"], ("--trainer.max_epochs: 'long'", "int")),
        (["--model.policy.init", "best"], ("--model.policy.init: 'best'", "pretrained or random")),
        (["--strategy", "magic"], ("--strategy magic is unknown", "auto", "ddp")),
        (["--accelerator", "abacus"], ("accelerator='abacus'", "cpu", "--accelerator")),
        (["--devices", "none"], ("devices",)),
        (["--devices", "0"], ("devices",)),
        (["--precision", "16-mixed"], ("--precision 16-mixed is not supported", "use bf16-mixed")),
        (["--precision", "16"], ("use bf16-mixed",)),
        (
            ["--precision", "bf16-true", "--model.critic_optimizer.lr", "1e-5"],
            ("bf16-true with a learning rate of", "most would never change; use bf16-mixed"),
        ),
        (["--precision", "17"], ("--trainer.precision: '17'", "bf16-mixed")),
        (["--ckpt_path", "last"], ("--ckpt_path last: no last.ckpt in any run under", "train first")),
        (["--ckpt_path", "nowhere.ckpt"], ("--ckpt_path nowhere.ckpt: no such checkpoint",)),
        (["more"], ("unknown flag more",)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_flag(flags: list[str], parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["run", "fit", recipe(tmp_path), *flags], *parts)


class Own(SPPOModule):
    """A user's module with a setting that has an old name."""

    def __init__(self, policy: ModelSource, max_concurrent: int = 4) -> None:
        super().__init__(policy)


POLICY = {"path": str(BASE), "init": "random"}


def of_class(path: str, **settings: Any) -> dict[str, Any]:
    return {"model": {"class_path": path, "init_args": {"policy": POLICY, **settings}}}


@pytest.mark.parametrize(
    ("changes", "flags", "line"),
    [
        ({}, ["--model.minibatch_size", "8"], "command line: model.minibatch_size is now model.batch.minibatch_size"),
        (
            {},
            ["--model.ppo_epochs=2", "--model.gamma", "1"],
            "command line: model.ppo_epochs is now model.ppo.epochs; also moved: advantage.gamma",
        ),
        ({"model.minibatch_size": 8}, [], "tiny.yaml: model.minibatch_size is now model.batch.minibatch_size"),
        ({"data.system": "Be brief."}, [], "tiny.yaml: data.system is now data.prompt.system"),
        (
            {"model.minibatch_size": 8},
            ["--model.lam", "1"],
            "command line: model.lam is now model.advantage.lam; also moved: batch.minibatch_size",
        ),
        (
            of_class("sppo_lit.SPPOModule", clip_low=0.1),
            [],
            "tiny.yaml: model.init_args.clip_low is now model.init_args.ppo.clip_low",
        ),
        (
            of_class("sppo_lit.SPPOModule"),
            ["--model.init_args.cpu_offload=true"],
            "command line: model.init_args.cpu_offload is now model.init_args.memory.cpu_offload",
        ),
        (
            of_class("sppo_lit.supervised.SupervisedModule", minibatch_size=8),
            [],
            "tiny.yaml: sppo_lit.supervised.SupervisedModule is now sppo_lit.SupervisedModule; also moved: "
            "batch.minibatch_size",
        ),
        (
            of_class("sppo_lit.SPPOModule"),
            ["--model.class_path", "sppo_lit.module.SPPOModule"],
            "command line: sppo_lit.module.SPPOModule is now sppo_lit.SPPOModule",
        ),
        (
            of_class("test_bad_input.Own", max_concurrent=3, minibatch_size=8),
            [],
            "tiny.yaml: model.init_args.minibatch_size is now model.init_args.batch.minibatch_size",
        ),
    ],
    ids=["flag", "flags", "key", "data", "both", "init_args", "init_args flag", "class", "class flag", "own class"],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_an_old_name_is_answered_with_the_new_one(
    stage: str,
    changes: dict[str, Any],
    flags: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refused(capsys, tmp_path, ["run", stage, recipe(tmp_path, changes), *flags]).endswith(f"{line}\n")


def test_all_old_names_of_a_saved_recipe_fit_in_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {f"model.{old}": None for old in SETTINGS})
    refused(capsys, tmp_path, ["run", file], " is now model.", *SETTINGS.values())


def test_new_names_are_settings_and_classes(tmp_path: Path) -> None:
    model = run_settings([str(recipe(tmp_path))]).model
    for new in SETTINGS.values():
        assert new.partition(" ")[0] in model
    for path in CLASSES.values():
        assert issubclass(getattr(sppo_lit, path.removeprefix("sppo_lit.")), LightningModule)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_such_accelerator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--accelerator", "gpu"], "gpu", "correct --accelerator")


def test_more_devices_than_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 1)
    monkeypatch.setattr("lightning.fabric.utilities.device_parser._get_all_available_gpus", lambda **kinds: [0])
    flags = ["--accelerator", "gpu", "--devices", "4"]
    refused(capsys, tmp_path, ["run", recipe(tmp_path), *flags], "gpu", "correct --accelerator, --devices")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: [1, 2\n", ("not valid YAML", "line 2")),
        ("just words\n", ("not a recipe", "YAML mapping")),
        ("", ("not a recipe", "YAML mapping")),
        ("- a\n- b\n", ("not a recipe", "YAML mapping")),
        ("\x00\x01", ("not valid YAML",)),
        ("model: &m\n  policy:\n    - *m\n", ("an anchor (&) refers to a place inside itself",)),
        ("title: T\nrecipe: r.yaml\ncells: {a: {}}\n", ("a study, not a recipe", "sppo study ")),
    ],
    ids=["broken", "words", "empty", "list", "binary", "loop", "study"],
)
def test_recipe_that_is_none(
    text: str, parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    refused(capsys, tmp_path, ["run", file], str(file), *parts)


def test_missing_recipe_or_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["run", "recipes/nothing.yaml"], "recipes/nothing.yaml", "no such file", "sppo list")
    refused(capsys, tmp_path, ["run", "test", "recipes/quickstart.yaml"], "test", "fit, validate")
    refused(capsys, tmp_path, ["run", "recipes/gsm8k"], "recipes/gsm8k is a folder", "name a .yaml file")
    refused(capsys, tmp_path, ["run", "a.yaml", "b.yaml"], "two recipes: a.yaml and b.yaml", "--flag value")
    refused(capsys, tmp_path, ["run"], "no recipe given", "sppo list")
    refused(capsys, tmp_path, ["run", "--max_epochs", "3"], "no recipe given")


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_checkpoint_that_is_none(stage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"data.val": [{"path": "arithmetic", "limit": 4}], "trainer.max_epochs": 3})
    whole = (trained / "last.ckpt").read_bytes()
    (tmp_path / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "a zip of something else")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    for name in ("truncated", "words", "empty", "other"):
        path = tmp_path / f"{name}.ckpt"
        refused(capsys, tmp_path, ["run", stage, file, "--ckpt_path", path], str(path), "damaged or not a checkpoint")
    path = tmp_path / "foreign.ckpt"
    refused(capsys, tmp_path, ["run", stage, file, "--ckpt_path", path], str(path), "not a checkpoint of sppo-lit")


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_checkpoint_of_another_model(
    stage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model.policy.config.hidden_size": 32, "model.policy.config.head_dim": 16, "trainer.max_epochs": 3}
    file = recipe(tmp_path, {**changes, "data.val": [{"path": "arithmetic", "limit": 4}]})
    refused(
        capsys,
        tmp_path,
        ["run", stage, file, "--ckpt_path", trained / "last.ckpt"],
        "the checkpoint is of a different model",
        "policy.model",
        "use the recipe it was trained with",
    )


def test_checkpoint_without_optimizers_or_iterations_left(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "last.ckpt", weights_only=True)
    for part in ("optimizer_states", "lr_schedulers"):
        content.pop(part)
    torch.save(content, tmp_path / "weights.ckpt")
    command = ["run", "fit", recipe(tmp_path), "--ckpt_path"]
    refused(capsys, tmp_path, [*command, tmp_path / "weights.ckpt"], "weights only", "cannot be resumed")
    command = ["run", "fit", recipe(tmp_path, {"trainer.max_epochs": 1}), "--ckpt_path"]
    refused(capsys, tmp_path, [*command, trained / "last.ckpt"], "from iteration 1", "raise --max_epochs")


# --------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("train.jsonl", None, ("No data file", "train.jsonl", "check the path")),
        (
            "train.jsonl",
            '{"problem": "1+1=", "answer": "2"}\n{"problem": "1+2="}\n',
            ("train.jsonl, row 2", "answer"),
        ),
        ("train.jsonl", "", ("train.jsonl", "is empty")),
        ("train.jsonl", '{"problem": "1+1=", "answer": "2"}\n{"problem', ("train.jsonl, row 2", "corrupt JSON")),
        ("train.txt", "1+1=2", ("train.txt", ".jsonl")),
        ("train.jsonl", '{"a": 1}\n', ("train.jsonl, row 1", "'problem'")),
    ],
    ids=["missing", "no answer", "empty", "corrupt", "kind", "columns"],
)
def test_bad_data(
    name: str, content: str | None, parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"data.train.path": str(file)})], *parts)
    changes = {"data.val": [{"path": str(file)}]}
    refused(capsys, tmp_path, ["run", "validate", recipe(tmp_path, changes)], *parts)


def test_parquet_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "train.parquet"
    columns = {name: pyarrow.array([], pyarrow.string()) for name in ("problem", "answer")}
    parquet.write_table(pyarrow.table(columns), file)
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"data.train.path": str(file)})], str(file), "it has no rows")


def test_prompts_longer_than_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ("max_prompt_tokens = 2 (the shortest has", "raise the limit")
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"data.max_prompt_tokens": 2})], *parts)
    file = tmp_path / "train.jsonl"
    file.write_text('{"problem": "1+1+1+1=", "answer": "4"}\n')
    changes = {"data.max_prompt_tokens": 2, "data.train.path": str(file)}
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], str(file), *parts)


def test_gold_answers_that_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"problem": "prove it", "answer": "\\\\frac{1"}\n')
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"data.train.path": str(file)})], str(file), "gold answers")


# ------------------------------------------------------------------------------------------------------------- models


def pretrained(tmp_path: Path, folder: Path, **changes: Any) -> Path:
    return recipe(tmp_path, {"model.policy": {"path": str(folder)}, **changes})


def test_tokenizer_without_eos(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model_folder / file).unlink()
    bare.save_pretrained(model_folder)
    refused(capsys, tmp_path, ["run", pretrained(tmp_path, model_folder)], str(model_folder), "no end-of-sequence")


@pytest.mark.parametrize("config", [T5Config(), CLIPConfig()], ids=["T5", "CLIP"])
def test_policy_that_is_no_causal_lm(
    config: Any, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.save_pretrained(model_folder)
    refused(
        capsys, tmp_path, ["run", pretrained(tmp_path, model_folder)], str(model_folder), "no causal language model"
    )


@pytest.mark.parametrize(
    ("broken", "parts"),
    [
        (lambda f: (f / "config.json").unlink(), ("config",)),
        (lambda f: (f / "model.safetensors").unlink(), ("no causal language model", "model.safetensors")),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678901234"), ("no causal language model",)),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            ("no causal language model",),
        ),
        (lambda f: (f / "config.json").write_text("{"), ("config.json",)),
        (lambda f: (f / "tokenizer.json").write_text("{"), ("no tokenizer could be loaded",)),
        (shutil.rmtree, ("no such model folder",)),
    ],
    ids=["no config", "no weights", "no safetensors", "cut weights", "cut config", "cut tokenizer", "no folder"],
)
def test_broken_policy_folder(
    broken: Any, parts: tuple[str, ...], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(model_folder)
    refused(capsys, tmp_path, ["run", pretrained(tmp_path, model_folder)], str(model_folder), *parts)


def test_weights_of_another_size_than_the_config(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    refused(
        capsys, tmp_path, ["run", pretrained(tmp_path, model_folder)], str(model_folder), "the shapes of its weights"
    )


def test_critic_of_another_vocabulary(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(model_folder, critic)
    tokenizer = AutoTokenizer.from_pretrained(critic)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(critic)
    file = pretrained(tmp_path, model_folder, **{"model.critic": {"path": str(critic)}})
    refused(capsys, tmp_path, ["run", file], f"critic {critic}", "vocabulary", "same family")


def test_config_changes_need_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, {"model.policy.init": "pretrained"})
    refused(capsys, tmp_path, ["run", file], "config changes", "init: random")


# ------------------------------------------------------------------------------------------- extras, disk, other ends


def test_vllm_that_is_missing_too_old_or_not_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: dict[str, str] = {}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(vllm_engine, "version", version)
    command = ["run", recipe(tmp_path), "--model.rollout.engine", "vllm"]
    refused(capsys, tmp_path, command, "model.rollout.engine vllm", "'sppo-lit[vllm]'")
    installed["vllm"] = "0.11.0"
    refused(capsys, tmp_path, command, "vllm 0.11.0 is too old", f"install {vllm_engine.OLDEST}")
    installed["vllm"] = "0.32.0"
    command += ["--model.ppo.old_logprobs", "sampler"]
    refused(capsys, tmp_path, command, "model.ppo.old_logprobs is sampler", "engine vllm", "to recompute")


def test_corrections_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on = ["run", recipe(tmp_path), "--model.correction.enabled", "true"]
    refused(capsys, tmp_path, [*on, "--model.ppo.old_logprobs", "sampler"], "model.correction", "every weight is 1")
    none = ["--model.correction.token_cap", "null", "--model.correction.sequence_cap", "null"]
    refused(capsys, tmp_path, [*on, *none], "neither token_cap nor sequence_cap")
    refused(capsys, tmp_path, [*on, "--model.correction.token_cap", "0.5"], "token_cap is 0.5", "at least 1")


def test_a_custom_engine_that_does_not_say_whether_it_is_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "silent.py").write_text(
        "class Silent:\n    deterministic = shares_weights = True\n    def __init__(self, *options):\n        pass\n"
    )
    capsys.readouterr()
    assert main(["run", str(recipe(tmp_path, {"model.rollout.engine": f"{tmp_path / 'silent.py'}:Silent"}))]) == 2
    assert "Silent has no attribute exact" in capsys.readouterr().err


def test_missing_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    file = recipe(tmp_path, {"model.policy": {"path": "model.gguf"}})
    refused(capsys, tmp_path, ["run", file], "model.gguf", "pip install 'sppo-lit[gguf]'")
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(capsys, tmp_path, ["run", recipe(tmp_path), "--wandb", "project"], "pip install 'sppo-lit[wandb]'")


def test_missing_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    refused(capsys, tmp_path, ["run", recipe(tmp_path, {"model.policy": {"path": "no.gguf"}})], "no.gguf: no such")
    (tmp_path / "odd.gguf").write_bytes(b"GGUF of nothing at all, but long enough to be read")
    file = recipe(tmp_path, {"model.policy": {"path": str(tmp_path / "odd.gguf")}})
    refused(capsys, tmp_path, ["run", file], "odd.gguf")


def test_no_free_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_callback, "free_bytes", lambda folder: 1000)
    parts = ("not enough free disk space", "1,000 are free", "--trainer.default_root_dir")
    refused(capsys, tmp_path, ["run", recipe(tmp_path)], *parts)


def test_run_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["run", recipe(tmp_path), "--trainer.default_root_dir", tmp_path / "file"]
    refused(capsys, tmp_path, arguments, str(tmp_path / "file"), "choose another folder")


def test_parents_of_the_run_folder_vanish_but_not_other_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / "new" / "deeper"
    file = recipe(tmp_path, {"data.max_prompt_tokens": 2, "data.val": [{"path": "arithmetic", "limit": 4}]})
    refused(capsys, tmp_path, ["run", file, "--trainer.default_root_dir", deep])
    other = deep / "tiny" / "version_0"
    other.mkdir(parents=True)
    (other / "metrics.csv").write_text("step\n1\n")
    refused(capsys, tmp_path, ["run", file, "--trainer.default_root_dir", deep])
    assert (other / "metrics.csv").exists()


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(tmp_path)), "--ckpt_path", "nowhere.ckpt", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "checkpoint_file" in error and "no such checkpoint" in error
    assert not (tmp_path / "runs").exists()


def test_a_bug_of_ours_is_no_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("bug")

    monkeypatch.setattr("sppo_lit.training.collector.Collector.collect", broken)
    with pytest.raises(KeyError, match="bug"):
        main(["run", str(recipe(tmp_path))])
