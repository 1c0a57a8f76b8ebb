"""Adapters: what they train, what the sampler and the reference see, what is exported, how a run resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import ROOT, recipe, refused
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sppo_lit.cli.main import main
from sppo_lit.distributed.sharding import whole_parameters
from sppo_lit.errors import InputError
from sppo_lit.models.loading import load_causal_lm, load_critic, load_tokenizer
from sppo_lit.models.lora import adapters, add_adapters, save_adapters
from sppo_lit.models.policy import Policy
from sppo_lit.rollout.torch_engine import TorchEngine, whole_copy
from sppo_lit.settings import ModelSource
from sppo_lit.types import Sampling

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
WARM = ROOT / "data" / "arithmetic" / "warmstart"
LORA: dict[str, Any] = {"model.policy": {"path": str(WARM)}, "model.lora": {"rank": 4, "alpha": 8.0}}
STEP: dict[str, Any] = {"model.policy_optimizer.lr": 0.01, "model.sampling.max_new_tokens": 24}


def adapted(name: str = "llama") -> Any:
    """A random model whose adapters have moved."""
    torch.manual_seed(0)
    ids: dict[str, Any] = {"vocab_size": 29, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if name == "llama":
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        model: Any = LlamaForCausalLM(LlamaConfig(**ids, **shape, num_attention_heads=4)).eval()
    else:
        model = GPT2LMHeadModel(GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    add_adapters(model, 4, 8.0, "all-linear")
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B["default"].weight.normal_(std=0.3)
    return model


def ids() -> Tensor:
    return torch.randint(0, 25, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sampler_policy_and_merged_copy_are_one_function(name: str) -> None:
    model = adapted(name)
    copy = whole_copy(model, torch.device("cpu"))
    assert not adapters(copy)
    sampling = Sampling(temperature=1.0, max_new_tokens=9)
    prompts = [row[: 3 + i].tolist() for i, row in enumerate(ids())]
    own = TorchEngine(model, [], 0).generate(prompts, sampling, keys=[1, 2, 3])
    engine = TorchEngine(copy, [], 0)
    engine.sync_weights(whole_parameters(model))
    assert [c.response_ids for c in own] == [c.response_ids for c in engine.generate(prompts, sampling, keys=[1, 2, 3])]
    torch.testing.assert_close(copy(ids()).logits, model(ids()).logits, rtol=1e-4, atol=1e-4)
    lengths = torch.tensor([len(prompts[0])])
    policy = Policy(model)
    terms = policy(torch.tensor(prompts[:1]), lengths, torch.tensor([own[0].response_ids]), torch.tensor([9]), 1.0)
    torch.testing.assert_close(terms.logprobs[0], torch.tensor(own[0].logprobs), rtol=1e-4, atol=1e-4)
    with policy.without_adapters():
        assert not torch.allclose(model(ids()).logits, copy(ids()).logits, atol=1e-2)


def test_without_adapters_is_the_policy_before_training_and_gradients_come_back() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(WARM)
    before = model(ids()).logits.detach()
    add_adapters(model, 4, 8.0, ["q_proj", "v_proj"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    assert torch.equal(model(ids()).logits, before)  # B starts at zero
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B["default"].weight.normal_()
    policy = Policy(model)
    with torch.no_grad(), policy.without_adapters():
        assert torch.equal(model(ids()).logits, before)
    assert not torch.allclose(model(ids()).logits, before)
    model(ids()).logits.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("targets", ["none_such", ["embed_tokens"], ["lm_head"]])
def test_targets_that_cannot_be_adapted(targets: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(WARM)
    model.config.tie_word_embeddings = True
    with pytest.raises(InputError, match=r"model\.lora\.targets"):
        add_adapters(model, 4, 8.0, targets)


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    file = recipe(tmp_path, LORA)
    refused(capsys, tmp_path, ["run", file], "model.lora needs the extra", "sppo-lit[lora]")
    monkeypatch.delitem(sys.modules, "peft")
    refused(capsys, tmp_path, ["run", file, "--model.lora.rank", "0"], "model.lora", "rank is 0")


def checkpoint(file: Path) -> dict[str, Any]:
    return torch.load(next(file.parents[1].glob(f"runs/*{file.stem}/version_0/checkpoints/last.ckpt")))


def test_a_run_trains_exports_and_resumes_exactly(tmp_path: Path) -> None:
    whole, half = recipe(tmp_path, LORA | STEP, "whole.yaml"), recipe(tmp_path, LORA | STEP, "half.yaml")
    assert main(["run", str(whole)]) == 0
    assert main(["run", str(half), "--max_epochs", "1"]) == 0
    assert main(["run", str(half), "--ckpt_path", "last"]) == 0
    one, two = checkpoint(whole), checkpoint(half)
    state = one["state_dict"]
    assert state.keys() == two["state_dict"].keys() and all(torch.equal(state[n], two["state_dict"][n]) for n in state)
    base = AutoModelForCausalLM.from_pretrained(WARM)
    weights = dict(base.named_parameters())
    moments = one["optimizer_states"][0]["state"]
    assert len(moments) == sum("lora_" in name for name in state) == 2 * 7 * base.config.num_hidden_layers
    for name, value in state.items():
        if name.startswith("policy.model.") and "lora_" not in name and "lm_head" not in name:
            plain = name.removeprefix("policy.model.").replace(".base_layer", "")
            assert torch.equal(value, weights[plain]), name

    run = next((tmp_path / "runs").glob("*whole/version_0"))
    exported = AutoModelForCausalLM.from_pretrained(run / "hf" / "policy")
    trained: Any = AutoModelForCausalLM.from_pretrained(WARM)
    add_adapters(trained, 4, 8.0, "all-linear")
    prefix = "policy.model."
    trained.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    logits = trained(ids()).logits
    assert not torch.allclose(logits, base(ids()).logits, atol=1e-2)
    torch.testing.assert_close(exported(ids()).logits, logits, rtol=1e-4, atol=1e-4)
    assert set(load_file(run / "hf" / "policy" / "model.safetensors")) == set(load_file(WARM / "model.safetensors"))
    adapter = peft.PeftModel.from_pretrained(base, run / "hf" / "adapter")
    torch.testing.assert_close(adapter(ids()).logits, logits, rtol=1e-4, atol=1e-4)

    # The adapter alone, as another run begins with it.
    source = ModelSource(str(WARM), adapter=str(run / "hf" / "adapter"))
    tokenizer = load_tokenizer(source)
    torch.testing.assert_close(load_causal_lm(source, tokenizer)(ids()).logits, logits, rtol=1e-4, atol=1e-4)
    critic = load_critic(source, tokenizer, "scalar")
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(critic.get_parameter(name), exported.get_parameter(name))
    assert all(p.requires_grad for p in critic.parameters())
    on_top = recipe(tmp_path, LORA | {"model.policy": {"path": str(WARM), "adapter": source.adapter}}, "on_top.yaml")
    assert main(["run", str(on_top), "--max_epochs", "1"]) == 0
    again = next((tmp_path / "runs").glob("*on_top/version_0/hf"))
    assert {part.name for part in again.iterdir()} == {"policy", "critic"}  # its adapter belongs to no saved model


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSource(str(WARM)))
    none = ModelSource(str(WARM), adapter=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"adapter .*none: not a readable adapter of this model") as caught:
        load_causal_lm(none, tokenizer)
    assert "\n" not in str(caught.value)
    config = AutoModelForCausalLM.from_pretrained(WARM).config
    for change, why in (({"num_hidden_layers": 9}, "98 parameters"), ({"hidden_size": 256}, "size mismatch")):
        other = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), **change}))
        add_adapters(other, 4, 8.0, "all-linear")
        save_adapters(tmp_path / "other", other, "other", lambda value: value.detach())
        with pytest.raises(InputError, match=f"not a readable adapter of this model .*{why}"):
            load_causal_lm(ModelSource(str(WARM), adapter=str(tmp_path / "other")), tokenizer)
    with pytest.raises(InputError, match="needs init: pretrained"):
        ModelSource(str(WARM), init="random", adapter="none")


def test_the_reference_policy_is_the_policy_without_adapters(tmp_path: Path) -> None:
    changes = LORA | STEP | {"model.kl.coef": 0.1}
    own = recipe(tmp_path, changes, "own.yaml")
    copy = recipe(tmp_path, changes | {"model.kl.reference": {"path": str(WARM)}}, "copy.yaml")
    for file in (own, copy):
        assert main(["run", str(file)]) == 0
    first, second = checkpoint(own)["state_dict"], checkpoint(copy)["state_dict"]
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)
