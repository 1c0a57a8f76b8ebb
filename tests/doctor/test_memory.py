"""Memory needs, simulated without weights, against bytes that are really there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import BASE, ROOT, SMALL, recipe

from sppo_lit.callbacks import checkpoint
from sppo_lit.cli.doctor import plan_of
from sppo_lit.cli.main import main, run_settings
from sppo_lit.doctor import memory, simulation
from sppo_lit.doctor.memory import Plan, disk_bytes, needs, network, networks, peak, token_bytes
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


def kept_bytes(model: Any, ids: torch.Tensor) -> tuple[int, int]:
    """Bytes that a forward pass saves for the backward pass, without parameters, and of its last hidden states."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(input_ids=ids, use_cache=False).last_hidden_state
    return sum(s.nbytes() for s in kept.values()), states.numel() * states.element_size()


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
    assert find(estimate, "weights of policy").updating == weights
    assert find(estimate, "moments").updating == moments
    assert find(estimate, "gradients of one").updating in gradients, "of the network with the higher peak"
    shares = needs(replace(PLAN, precision=precision, sharded=True, ranks=4))
    assert find(shares, "weights of policy").updating == pytest.approx(weights / 4, abs=8)
    assert find(shares, "copy of").sampling == held(policy.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_keys_and_values_are_those_of_the_cache(precision: str) -> None:
    model: Any = load_causal_lm(SOURCE, load_tokenizer(SOURCE))
    config, plan = model.config, replace(PLAN, precision=precision)
    entries = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert token_bytes(plan) == entries * (2 if precision == "bf16-mixed" else 4)
    assert find(needs(plan), "keys").sampling == 5 * 64 * token_bytes(plan), "columns come by sixteen"


@pytest.mark.slow
def test_layers_are_extrapolated_to_what_all_of_them_need(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(SOURCE, config=dict(SMALL, num_hidden_layers=9))
    plan = replace(PLAN, policy=source, critic=source, precision="bf16-mixed", sharded=True, ranks=2)
    extrapolated = needs(plan)
    monkeypatch.setattr(simulation, "MORE", 9)
    for peaks in (simulation.update_bytes, simulation.sampling_bytes):
        monkeypatch.setattr(memory, peaks.__name__, peaks.__wrapped__)
    for row, whole in zip(extrapolated, needs(plan), strict=True):
        assert row.what == whole.what
        assert row.sampling == pytest.approx(whole.sampling, rel=0.02, abs=2000), row.what
        assert row.updating == pytest.approx(whole.updating, rel=0.02, abs=2000), row.what


def test_what_waits_in_the_hosts_memory_is_not_counted_while_sampling() -> None:
    plan = replace(PLAN, precision="bf16-mixed", sharded=True, ranks=4, concurrent=500)
    plain, moments, everything = (
        needs(replace(plan, offload_while_sampling=what)) for what in ("none", "optimizer", "all")
    )
    saved = find(plain, "moments").sampling
    assert saved == find(plain, "moments").updating and find(moments, "moments").sampling == 0
    assert find(everything, "weights of policy").sampling == 0
    total = [sum(n.sampling for n in rows) for rows in (plain, moments, everything)]
    assert total[0] - total[1] == saved and total[1] - total[2] == find(plain, "weights of policy").sampling
    assert len({sum(n.updating for n in rows) for rows in (plain, moments, everything)}) == 1


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
    plain = sum(n.updating for n in needs(PLAN))

    def updating(**changes: Any) -> int:
        return sum(n.updating for n in needs(replace(PLAN, **changes)))

    assert updating(gradient_checkpointing=True) < plain
    assert updating(micro_batch_tokens=1200) > plain
    assert updating(reference=SOURCE) == plain + network(PLAN, SOURCE).weights
    assert peak(needs(replace(PLAN, concurrent=5000))) > peak(needs(PLAN))
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


def doctor(recipe: str, *flags: str) -> int:
    return main(["doctor", str(ROOT / "recipes" / recipe), "--no-load", "--memory", "80", *flags])


FOUR = ("--devices", "4", "--strategy", "fsdp")


@pytest.mark.parametrize("recipe", ["dapo17k_7b/sppo.yaml", "dapo17k_7b/rloo.yaml"])
def test_the_papers_recipes_fit_without_the_hub(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 240)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert doctor(recipe, *FOUR) == 0
    shown = capsys.readouterr().out
    assert "simulated" in shown and "reckoned" in shown and "80.0 GiB" in shown
    assert not Path("lightning_logs", recipe.replace("/", "-").removesuffix(".yaml")).exists()


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["dapo17k_7b", "deepscaler_1.5b"])
def test_every_recipe_of_the_paper_fits(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = FOUR if folder == "dapo17k_7b" else ("--devices", "1")
    seen: set[str] = set()
    for path in sorted((ROOT / "recipes" / folder).glob("*.yaml")):
        plan = str(plan_of(run_settings([str(path), *flags]), 4 if flags is FOUR else 1))
        if plan in seen:  # many algorithms need the same memory
            continue
        seen.add(plan)
        assert doctor(f"{folder}/{path.name}", *flags) == 0, f"{path}: {capsys.readouterr().out}"


def test_what_does_not_fit_is_said_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 240)
    flags = ("--model.memory.offload_while_sampling", "none", "--model.rollout.max_concurrent", "128")
    assert doctor("dapo17k_7b/sppo.yaml", *FOUR, *flags) == 1
    shown = capsys.readouterr().out
    assert "max_concurrent: at most" in shown and "offload_while_sampling: all" in shown and "bf16-true" not in shown


def test_sizes_are_those_of_the_published_models(tmp_path: Path) -> None:
    plan = replace(PLAN, critic_kind="none", precision="bf16-mixed")
    for size, parameters in (("7B", 7_615_616_512), ("1.5B", 1_777_088_000)):
        model = ModelSource(f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}")
        assert network(plan, model).weights == 4 * parameters
    with pytest.raises(InputError, match="no model configuration"):
        needs(replace(plan, policy=ModelSource(str(tmp_path))))
