"""The policy's and the critic's numbers against the model's own full logits, one unpadded sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from sppo_lit.errors import InputError
from sppo_lit.models import policy as policy_file
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import disable_dropout
from sppo_lit.models.policy import Policy

VOCABULARY, TEMPERATURE = 37, 0.7
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 5, "pad_token_id": 5}
NAMES = ("llama", "qwen2 tied", "qwen2 untied", "gpt2")


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, **IDS))
    elif name.startswith("qwen2"):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **IDS, tie_word_embeddings=name.endswith(" tied")))
    else:
        model = GPT2LMHeadModel(GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64))
        disable_dropout(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)  # spread distributions, so that a wrong position cannot pass for the right one
    return model.train()


def ragged(fill: int = 0, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six prompts and responses, among them some of one token, padded with `fill` and `extra` columns more."""
    generator = torch.Generator().manual_seed(1)
    prompts, responses = torch.tensor([3, 9, 1, 6, 1, 4]), torch.tensor([8, 2, 5, 1, 1, 11])
    ids = []
    for lengths in (prompts, responses):
        rows = torch.randint(0, VOCABULARY, (6, int(lengths.max())), generator=generator)
        rows = torch.nn.functional.pad(rows, (0, extra))
        ids.append(torch.where(torch.arange(rows.shape[1]) < lengths[:, None], rows, fill))
    return ids[0], prompts, ids[1], responses


def reference(model: Any, row: int, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    prompt_ids, prompts, response_ids, responses = batch
    prompt, response = prompt_ids[row, : prompts[row]], response_ids[row, : responses[row]]
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0].double()
    logprobs = (logits / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]
    return logprobs[torch.arange(len(response)), response], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_entropies_and_gradients_equal_those_of_full_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build(name), ragged()
    for chunk in (2**24, VOCABULARY * 3):
        monkeypatch.setattr(policy_file, "LOGITS_PER_CHUNK", chunk)
        terms = Policy(model)(*batch, TEMPERATURE)
        assert terms.logprobs.shape == batch[2].shape and not terms.entropy.requires_grad
        total: Any = 0.0
        for row, length in enumerate(batch[3].tolist()):
            logprobs, entropy = reference(model, row, batch)
            total = total + logprobs.sum()
            assert torch.allclose(terms.logprobs[row, :length].double(), logprobs, atol=1e-4)
            assert torch.allclose(terms.entropy[row, :length].double(), entropy, atol=1e-4)
            assert not terms.logprobs[row, length:].any() and not terms.entropy[row, length:].any()
        ours = torch.autograd.grad(terms.logprobs.sum(), list(model.parameters()))
        theirs = torch.autograd.grad(total, list(model.parameters()))
        scale = max(float(g.abs().max()) for g in theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    policy = Policy(build(name))
    plain = policy(*ragged(), TEMPERATURE).logprobs
    for fill, extra in ((5, 0), (11, 7)):
        padded = policy(*ragged(fill, extra), TEMPERATURE).logprobs
        assert torch.allclose(padded[:, : plain.shape[1]], plain, atol=1e-5) and not padded[:, plain.shape[1] :].any()


class LargestLogits(TorchDispatchMode):
    """Remembers the most elements of any tensor whose last dimension is the vocabulary, forward and backward."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 0 and tensor.shape[-1] == VOCABULARY:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("tokens", [3, 7])
def test_no_more_logits_than_a_chunk_are_ever_held(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # An untied head's weight is [VOCABULARY, 32] and so is its gradient: neither has the vocabulary last, but the
    # gradient is first made as its transpose, [32, VOCABULARY]. The hidden size is no larger than the chunk here.
    config = LlamaConfig(**{**SHAPE, "hidden_size": 8, "num_attention_heads": 2}, **IDS)
    policy = Policy(LlamaForCausalLM(config))
    limit = VOCABULARY * max(tokens, 8)
    monkeypatch.setattr(policy_file, "LOGITS_PER_CHUNK", VOCABULARY * tokens)
    with LargestLogits() as seen:
        policy(*ragged(), TEMPERATURE).logprobs.sum().backward()
    assert VOCABULARY * tokens <= seen.largest <= limit
    assert limit < VOCABULARY * int(ragged()[3].sum()) / 3


def critic() -> ScalarCritic:
    torch.manual_seed(0)
    return ScalarCritic(LlamaForSequenceClassification(LlamaConfig(**SHAPE, **IDS, num_labels=1)))


def test_critic_reads_the_last_prompt_token_whatever_pads_the_prompt() -> None:
    net = critic()
    prompt_ids, lengths, _, _ = ragged()
    plain = net(prompt_ids, lengths)
    for fill, extra in ((5, 0), (11, 7)):
        assert torch.allclose(net(ragged(fill, extra)[0], lengths), plain, atol=1e-5)
    alone = torch.cat([net(prompt_ids[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(alone, plain, atol=1e-5)
    assert plain.shape == (6,) and plain.dtype == torch.float32


def test_critic_reads_a_prompt_that_ends_in_the_pad_token() -> None:
    net = critic()
    ids = torch.tensor([[7, 9, 5], [7, 9, 8], [7, 9, 0]])  # 5 is eos, pad, and here a real token
    ends, other, shorter = net(ids, torch.tensor([3, 3, 2])).tolist()
    hidden = net.model.base_model(input_ids=ids).last_hidden_state
    scores = net.model.score(hidden)[..., 0]
    assert ends == pytest.approx(float(scores[0, 2].detach())) and shorter == pytest.approx(
        float(scores[0, 1].detach())
    )
    assert len({round(v, 6) for v in (ends, other, shorter)}) == 3


def other_heads() -> dict[str, Any]:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    capped = Gemma2Config(**SHAPE, **IDS, head_dim=8)  # a cap of 30: nothing that its small random logits would show
    both_sides = XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=32)
    return {
        "soft cap": lambda: Gemma2ForCausalLM(capped),
        "scale": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, **IDS, logits_scaling=8.0)),
        "reads to the right": lambda: XLNetLMHeadModel(both_sides),
        "larger head": lambda: BertLMHeadModel(BertConfig(vocab_size=VOCABULARY, intermediate_size=32, **sizes)),
    }


@pytest.mark.parametrize("kind", other_heads())
def test_what_log_probabilities_would_be_wrong_of_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match="its logits are not its output layer") as caught:
        Policy(other_heads()[kind]())
    assert "\n" not in str(caught.value)


def test_the_check_of_the_head_leaves_the_model_as_it_was() -> None:
    model = build("gpt2")
    ids = torch.arange(9)[None]
    before = model(ids).logits
    assert Policy(model).model.training and torch.equal(model(ids).logits, before)
