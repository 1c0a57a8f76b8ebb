"""Tiny random-weight models and prompts for the sampler's tests."""

from __future__ import annotations

import random

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 29
PAD = 0


def build(name: str, seed: int = 0, **changes: int) -> PreTrainedModel:
    """A causal LM whose logits are spread enough for greedy decoding to be free of ties; `changes` of its config."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **changes}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    if name == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**shape, **ids, num_key_value_heads=4))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, **ids, num_key_value_heads=2))
    else:
        dropout = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
        model = GPT2LMHeadModel(GPT2Config(**ids, **dropout, n_embd=32, n_layer=2, n_head=4, n_positions=128))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model.train()


def ragged_prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens, none of them the padding token."""
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]
