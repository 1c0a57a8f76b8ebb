"""What can be loaded, and the one line that says why something cannot."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import (
    disable_dropout,
    eos_token_ids,
    load_causal_lm,
    load_critic,
    load_tokenizer,
)
from sppo_lit.settings import ModelSource

BASE = Path(__file__).resolve().parents[2] / "data" / "arithmetic" / "base"
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
RANDOM = ModelSource(str(BASE), "random", SMALL)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(RANDOM)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A saved policy of random weights with its tokenizer."""
    torch.manual_seed(0)
    load_causal_lm(RANDOM, tokenizer).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def refused(match: str, call: Any, *arguments: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_random_weights_take_the_changed_architecture_and_differ_by_seed(tokenizer: Any) -> None:
    torch.manual_seed(1)
    first = load_causal_lm(RANDOM, tokenizer)
    torch.manual_seed(2)
    second = load_causal_lm(RANDOM, tokenizer)
    assert first.config.hidden_size == 16 and first.config.num_hidden_layers == 1
    weights = [m.get_input_embeddings().weight for m in (first, second)]
    assert weights[0].dtype == torch.float32 and not torch.equal(*weights)


def test_saved_weights_come_back_and_pad_is_set(folder: Path, tokenizer: Any) -> None:
    model = load_causal_lm(ModelSource(str(folder)), tokenizer)
    stored = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(model.get_parameter(name), stored[name])
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None


def test_config_changes_need_random_weights() -> None:
    refused("need init: random", lambda: ModelSource(str(BASE), "pretrained", {"hidden_size": 3}))


def test_a_model_without_layers_is_refused(tokenizer: Any) -> None:
    source = ModelSource(str(BASE), "random", {"num_hidden_layers": -1})
    refused("num_hidden_layers = -1: a model has at least one", lambda: load_causal_lm(source, tokenizer))


def test_a_critic_from_a_policy_folder_values_every_prompt_at_one_half(folder: Path, tokenizer: Any) -> None:
    model = load_critic(ModelSource(str(folder)), tokenizer, "scalar")
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.get_parameter("model.embed_tokens.weight"), stored["model.embed_tokens.weight"])
    logits = ScalarCritic(model)(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    assert torch.sigmoid(logits).tolist() == [0.5, 0.5]


def test_a_trained_critic_keeps_its_head(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    model = load_critic(ModelSource(str(folder)), tokenizer, "scalar")
    torch.nn.init.ones_(model.get_parameter("score.weight"))
    model.save_pretrained(tmp_path / "critic")
    again = load_critic(ModelSource(str(tmp_path / "critic")), tokenizer, "scalar")
    assert bool((again.get_parameter("score.weight") == 1).all())


@pytest.mark.parametrize(("kind", "other"), [("scalar", "token"), ("token", "scalar")])
def test_a_critic_of_the_other_kind_lends_its_backbone_alone(
    folder: Path, tmp_path: Path, tokenizer: Any, kind: Any, other: Any
) -> None:
    """Its head was trained on another loss, and for PPO on returns instead of logits."""
    model = load_critic(ModelSource(str(folder)), tokenizer, kind)
    torch.nn.init.ones_(model.get_parameter("score.weight"))
    model.save_pretrained(tmp_path / kind)
    again = load_critic(ModelSource(str(tmp_path / kind)), tokenizer, other)
    assert not again.get_parameter("score.weight").any()
    name = "model.embed_tokens.weight"
    assert torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_missing_weights_are_named(folder: Path, tokenizer: Any) -> None:
    stored = load_file(folder / "model.safetensors")
    stored.pop("model.norm.weight")
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    refused(r"lack 1 parameters .*model\.norm\.weight", load_causal_lm, ModelSource(str(folder)), tokenizer)


@pytest.mark.parametrize("load", [load_causal_lm, partial(load_critic, kind="scalar")])
def test_a_folder_that_is_not_there_is_named(load: Any, tokenizer: Any, tmp_path: Path) -> None:
    refused("no such model folder", load, ModelSource(str(tmp_path / "nothing")), tokenizer)
    export = "lightning_logs/gsm8k-warmup/version_7/hf/policy"
    refused("'lightning run recipes/gsm8k/warmup.yaml' makes it", load, ModelSource(export), tokenizer)


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    refused("no causal language model", load_causal_lm, ModelSource(str(tmp_path)), tokenizer)


def test_a_tokenizer_without_end_of_sequence_is_refused(folder: Path) -> None:
    bare = AutoTokenizer.from_pretrained(folder)
    bare.eos_token = None
    bare.save_pretrained(folder)
    refused("no end-of-sequence token", load_tokenizer, ModelSource(str(folder)))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copy(BASE / "config.json", tmp_path)
    refused("no tokenizer could be loaded", load_tokenizer, ModelSource(str(tmp_path)))


def test_a_critic_of_another_vocabulary_is_refused(folder: Path, tokenizer: Any) -> None:
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens(["another"])
    other.save_pretrained(folder)
    refused("its vocabulary", partial(load_critic, kind="scalar"), ModelSource(str(folder)), tokenizer)


def test_fewer_embeddings_than_tokens_are_refused(tokenizer: Any) -> None:
    source = ModelSource(str(BASE), "random", {**SMALL, "vocab_size": len(tokenizer) - 1})
    refused("embeddings for a vocabulary of", load_causal_lm, source, tokenizer)


def test_dropout_is_off_in_training_while_the_configuration_keeps_it(tmp_path: Path, tokenizer: Any) -> None:
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=64, attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    sources = [ModelSource(str(tmp_path)), ModelSource(str(BASE), "random", {**SMALL, "attention_dropout": 0.5})]
    for source, key in zip(sources, ("resid_pdrop", "attention_dropout"), strict=True):
        model = load_causal_lm(source, tokenizer).train()
        ids = torch.arange(1, 20)[None]
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert getattr(model.config, key) == 0.5


def test_layers_that_training_skips_at_random_are_skipped_no_more() -> None:
    config = OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=16,
        word_embed_proj_dim=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        max_position_embeddings=32,
        layerdrop=0.5,
    )
    model = OPTForCausalLM(config).train()
    disable_dropout(model)
    ids = torch.arange(4, 20)[None]
    first = model(ids).logits
    assert all(torch.equal(model(ids).logits, first) for _ in range(4))


def test_a_critic_that_is_no_causal_model_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ).save_pretrained(tmp_path)
    refused(
        "no linear head named score",
        partial(load_critic, kind="scalar"),
        ModelSource(str(tmp_path), "random"),
        tokenizer,
    )


def write_gguf(model: Any, path: Path) -> None:
    """A Llama as llama.cpp stores it: names of its own, and query and key rows interleaved for its rotary embedding."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    config, heads = model.config, model.config.num_attention_heads
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_policy_and_critic_that_can_be_saved(
    folder: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    original = load_causal_lm(ModelSource(str(folder)), tokenizer)
    write_gguf(original, tmp_path / "tiny.gguf")
    source = ModelSource(str(tmp_path / "tiny.gguf"))
    policy, critic = load_causal_lm(source, tokenizer), load_critic(source, tokenizer, "scalar")
    assert "GGUF tensors" not in capsys.readouterr().err, "no progress bars"
    ids = torch.arange(2, 14)[None]
    expected = original(input_ids=ids).logits
    assert torch.allclose(policy(input_ids=ids).logits, expected, atol=1e-5)
    assert torch.allclose(
        critic.base_model(input_ids=ids).last_hidden_state, original.base_model(input_ids=ids).last_hidden_state
    )
    assert not ScalarCritic(critic)(ids, torch.tensor([12])).any()
    policy.save_pretrained(tmp_path / "saved")
    again = load_causal_lm(ModelSource(str(tmp_path / "saved")), tokenizer)
    assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)


def test_every_end_of_sequence_id_ends_a_response(folder: Path, tokenizer: Any) -> None:
    model = load_causal_lm(ModelSource(str(folder)), tokenizer)
    own = int(tokenizer.eos_token_id)
    for declared, expected in ((None, {own}), (7, {own, 7}), ([9, 7, own], {own, 7, 9})):
        model.generation_config.eos_token_id = declared
        assert eos_token_ids(model, tokenizer) == sorted(expected)
