"""The paper's 7B recipe from end to end on two ranks, with a small random model of its architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launch import ROOT, equal, launch
from transformers import Qwen2Config

pytestmark = pytest.mark.slow
BASE = ROOT / "data" / "arithmetic" / "base"
RECIPE = "recipes/dapo17k_7b/sppo.yaml"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A Qwen2 of four layers, with the shared tokenizer of the arithmetic problems."""
    folder = tmp_path / "qwen2"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(
        **sizes, num_hidden_layers=4, vocab_size=32, eos_token_id=1, pad_token_id=0, tie_word_embeddings=False
    )
    config.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / file, folder / file)
    return f"{{path: {folder}, init: random}}"


def test_the_7b_recipe_in_miniature(tmp_path: Path, model: str) -> None:
    flags = (
        *("--accelerator=cpu", "--strategy=fsdp", "--devices=2", f"--model.policy={model}", f"--model.critic={model}"),
        *("--data.train={path: arithmetic}", "--data.val=[{path: arithmetic, limit: 4}]"),
        *("--data.problems_per_epoch=16", "--model.batch.minibatch_size=8", "--model.sampling.max_new_tokens=24"),
        *("--model.evaluation.samples=2", "--model.memory.micro_batch_tokens=128", "--model.rollout.max_concurrent=4"),
        *("--model.verifier.workers=1", "--trainer.num_sanity_val_steps=0", "--checkpoint.every_n_iterations=1"),
    )
    whole = launch(tmp_path / "whole", *flags, "--max_epochs=3", recipe=RECIPE, settings=())
    config = (whole.folder / "config.yaml").read_text(encoding="utf-8")
    assert "offload_while_sampling: all" in config and "precision: bf16-mixed" in config
    assert whole.metrics["step"] == 3 and whole.metrics["policy/first_ratio_deviation"] == 0
    assert whole.metrics["rollout/logprob_gap"] < 0.01, "sampler and update are the same function"
    assert "val/arithmetic/avg_at_k" in whole.metrics, "evaluated after the second iteration"
    assert {p.name for p in (whole.folder / "checkpoints").iterdir()} >= {"last.ckpt", "previous.ckpt"}
    part = launch(tmp_path / "part", *flags, "--max_epochs=2", recipe=RECIPE, settings=())
    resumed = launch(tmp_path / "part", *flags, "--max_epochs=3", "--ckpt_path=last", recipe=RECIPE, settings=())
    assert resumed.folder == part.folder and resumed.metrics["step"] == 3
    assert equal(resumed.ranks[0], resumed.ranks[1]) and equal(whole.ranks[0], resumed.ranks[0])
