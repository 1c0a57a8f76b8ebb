"""Estimates of memory, made without weights, against bytes that are really there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import BASE, ROOT, SMALL, recipe
from transformers import Qwen2Config

from sppo_lit.callbacks import checkpoint
from sppo_lit.cli.main import main
from sppo_lit.doctor.memory import Plan, disk_bytes, kept_bytes, needs, network, networks, peak
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import load_causal_lm, load_critic, load_tokenizer
from sppo_lit.models.policy import Policy
from sppo_lit.settings import ModelSource
from sppo_lit.training.module import SPPOModule
from sppo_lit.utils.console import console

pytestmark = pytest.mark.filterwarnings("ignore")
WARM = ROOT / "data" / "arithmetic" / "warmstart"
SOURCE = ModelSource(str(BASE), init="random", config=dict(SMALL, num_hidden_layers=3))
PLAN = Plan(
    policy=SOURCE,
    critic=SOURCE,
    critic_kind="scalar",
    reference=None,
    precision="32-true",
    ranks=1,
    sharded=False,
    micro_batch_tokens=120,
    prompt_tokens=20,
    response_tokens=40,
    concurrent=5,
)


def held(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def find(estimate: Any, what: str) -> Any:
    return next(n for n in estimate if what in n.what)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_weights_gradients_and_moments_are_those_of_a_real_update(precision: str, dtype: torch.dtype) -> None:
    tokenizer = load_tokenizer(SOURCE)
    policy = Policy(load_causal_lm(SOURCE, tokenizer)).to(dtype)
    critic = ScalarCritic(load_critic(SOURCE, tokenizer, "scalar")).to(dtype)
    moments, gradients = 0, []
    ids, lengths = torch.ones((2, 3), dtype=torch.int64), torch.full((2,), 3)
    for network_, loss in (
        (policy, lambda: policy(ids, lengths, ids, lengths, 1.0).logprobs.sum()),
        (critic, lambda: critic(ids, lengths).sum()),
    ):
        optimizer = torch.optim.AdamW(network_.parameters())
        loss().backward()
        gradients.append(held(p.grad for p in network_.parameters() if p.grad is not None))
        optimizer.step()
        moments += held(t for state in optimizer.state.values() for t in state.values() if t.ndim)
    estimate = needs(replace(PLAN, precision=precision))
    weights = held([*policy.parameters(), *critic.parameters()])
    assert find(estimate, "weights").updating == weights
    assert find(estimate, "moments").updating == moments
    assert find(estimate, "gradients").updating == max(gradients)
    shares = needs(replace(PLAN, precision=precision, sharded=True, ranks=4))
    assert find(shares, "weights").updating == pytest.approx(weights / 4, abs=8)
    assert find(shares, "copy").sampling == held(policy.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_and_cache_are_about_those_of_a_real_pass(precision: str) -> None:
    model: Any = load_causal_lm(SOURCE, load_tokenizer(SOURCE))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
        real, _ = kept_bytes(model.base_model, torch.zeros((2, 60), dtype=torch.int64))
    found = network(replace(PLAN, precision=precision), SOURCE)
    assert found.activations == pytest.approx(real, rel=0.15)
    config = model.config
    entries = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert found.per_token == entries * (2 if precision == "bf16-mixed" else 4)
    assert find(needs(replace(PLAN, precision=precision)), "keys").sampling == 5 * 60 * found.per_token


def test_gradient_checkpointing_keeps_only_what_layers_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the update of a pretrained model, which is loaded in evaluation mode, after sampling and validation."""
    seen: dict[bool, int] = {}
    old = SPPOModule.policy_step

    def measured(self: SPPOModule, *inputs: Any) -> Any:
        seen[self.memory.gradient_checkpointing], states = kept_bytes(
            self.policy.model.base_model, torch.ones((4, 60)).long()
        )
        limit = (self.policy.model.config.num_hidden_layers + 3) * states
        assert not self.memory.gradient_checkpointing or seen[True] < limit
        return old(self, *inputs)

    monkeypatch.setattr(SPPOModule, "policy_step", measured)
    changes = {"model.policy": {"path": str(WARM)}, "data.val": [{"path": "arithmetic", "limit": 2}]}
    for checkpointing in (False, True):
        file = recipe(
            tmp_path, {**changes, "model.memory.gradient_checkpointing": checkpointing}, f"{checkpointing}.yaml"
        )
        assert main(["run", str(file), "--trainer.check_val_every_n_epoch", "1"]) == 0
    assert 5 * seen[True] < seen[False]


def test_what_a_setting_costs() -> None:
    plain = peak(needs(PLAN))
    assert peak(needs(replace(PLAN, gradient_checkpointing=True))) < plain
    assert peak(needs(replace(PLAN, micro_batch_tokens=1200))) > plain
    assert peak(needs(replace(PLAN, reference=SOURCE))) == plain + network(PLAN, SOURCE).weights
    assert len(networks(replace(PLAN, critic_kind="none"))) == 1
    without = disk_bytes(replace(PLAN, critic_kind="none"))
    assert without == 13 * network(PLAN, SOURCE).weights  # four checkpoints: ×3 each; and the export


def test_disk_suffices_for_the_checkpoints_that_a_run_has_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[dict[int, int]] = []

    def measured(path: Path) -> None:
        found = [p.stat() for p in path.parent.iterdir()]  # hard links share one inode
        sizes.append({entry.st_ino: entry.st_size for entry in found})

    monkeypatch.setattr(checkpoint, "flush", measured)  # called when the new one is whole and nothing is replaced yet
    # The first iteration's stays the best one: nothing is learned.
    changes = {
        "model.policy.config": dict(SMALL, hidden_size=128, intermediate_size=512),
        "model.sampling.max_new_tokens": 2,
        "trainer.max_epochs": 4,
        "trainer.check_val_every_n_epoch": 1,
        "data.val": [{"path": "arithmetic", "limit": 2}],
    }
    assert main(["run", str(recipe(tmp_path, changes))]) == 0
    source = ModelSource(str(BASE), init="random", config=changes["model.policy.config"])
    plan = replace(PLAN, policy=source, critic=source)
    exported = sum(n.weights for n in networks(plan))
    assert len(sizes[-1]) == 4
    assert sum(sizes[-1].values()) == pytest.approx(disk_bytes(plan) - exported, rel=0.03)


def test_a_folder_with_nothing_but_a_config_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 240)
    shape: dict[str, Any] = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    Qwen2Config(**shape, **heads, tie_word_embeddings=False).save_pretrained(tmp_path / "7b")
    command = ["doctor", str(ROOT / "recipes" / "dapo17k_7b" / "sppo.yaml"), "--no-load", "--devices", "4"]
    model = ["--model.policy.path", str(tmp_path / "7b"), "--model.critic.path", str(tmp_path / "7b")]
    root = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main([*command, *model, *root, "--strategy", "fsdp", "--memory", "80"]) == 1
    shown = capsys.readouterr().out
    assert "28.4 GiB" in shown and "max_concurrent" in shown and "80.0 GiB" in shown
    assert not (tmp_path / "runs").exists()
    plan = replace(PLAN, policy=ModelSource(str(tmp_path / "7b")), critic_kind="none", precision="bf16-mixed")
    assert find(needs(plan), "weights").updating == 4 * 7_615_616_512  # as published for this architecture
    with pytest.raises(InputError, match="no model configuration"):
        needs(replace(plan, policy=ModelSource(str(tmp_path))))
