"""Construction of the networks of a module."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.loading import checkpoint_layers, eos_token_ids, load_causal_lm, load_critic
from sppo_lit.models.lora import add_adapters
from sppo_lit.models.policy import Policy
from sppo_lit.settings import LoraSettings, MemorySettings, ModelSource

CRITICS: dict[str, type[ScalarCritic] | type[TokenCritic]] = {"scalar": ScalarCritic, "token": TokenCritic}


def make_policy(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    memory: MemorySettings,
    lora: LoraSettings | None,
    entropy_gradient: bool,
    empty: bool,
) -> Policy:
    """A policy to be trained.

    Args:
        source: where it comes from.
        tokenizer: its tokenizer.
        memory: whether to use gradient checkpointing.
        lora: adapters to train instead of its weights; None for none.
        entropy_gradient: see `Policy`.
        empty: without weights (on the meta device).

    Raises:
        InputError: it cannot be loaded, adapted or used as a policy.
    """
    model = load_causal_lm(source, tokenizer, empty)
    if lora is not None:
        with torch.device("meta") if empty else nullcontext():
            add_adapters(model, lora.rank, lora.alpha, lora.targets)
    if not empty:
        model.generation_config.eos_token_id = eos_token_ids(model, tokenizer)  # type: ignore[union-attr]
    policy = Policy(model, entropy_gradient)
    if memory.gradient_checkpointing:
        checkpoint_layers(model)
    return policy


def make_critic(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    memory: MemorySettings,
    kind: Literal["scalar", "token"],
    empty: bool,
) -> ScalarCritic | TokenCritic:
    """A critic that reads the policy's token ids.

    Args:
        source: where it comes from.
        tokenizer: the policy's tokenizer.
        memory: whether to use gradient checkpointing.
        kind: kind of critic.
        empty: without weights (on the meta device).

    Raises:
        InputError: it cannot be loaded, or has a different vocabulary.
    """
    model = load_critic(source, tokenizer, kind, empty)
    if memory.gradient_checkpointing:
        checkpoint_layers(model)
    return CRITICS[kind](model)


def make_reference(source: ModelSource, tokenizer: PreTrainedTokenizerBase, empty: bool) -> Policy:
    """A frozen policy.

    Args:
        source: where it comes from.
        tokenizer: the policy's tokenizer.
        empty: without weights (on the meta device).

    Raises:
        InputError: it cannot be loaded or used as a policy.
    """
    return Policy(load_causal_lm(source, tokenizer, empty)).requires_grad_(False)
