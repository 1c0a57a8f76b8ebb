"""Attention of one query token to the slots of a cache.

PyTorch's CPU kernel is optimised for long queries; for one token per row, two batched matrix products take half the
time. On a GPU, where a mask keeps its kernels from sharing keys and values among query heads, they would be repeated
for each (sevenfold in Qwen2 7B: 14 GB a layer for 96 sequences of 10,000 tokens); the products read them once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sppo_decode"


def decode_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in the signature of `transformers`; longer queries and special options fall back to its SDPA.

    Args:
        module: the attention layer.
        query: [N, heads, Q, D].
        key: [N, key/value heads, K, D].
        value: [N, key/value heads, K, D].
        attention_mask: [N or 1, 1, Q, K], additive.
        dropout: ignored for Q = 1.
        scaling: factor of the dot products; D**-0.5 if None.
        options: further arguments of the model.

    Returns:
        [N, Q, heads, D], and None for the attention weights.
    """
    special = any(options.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if query.shape[2] > 1 or attention_mask is None or special:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    rows, heads, _, size = query.shape
    # Query heads that share a key/value head become the rows of one product.
    grouped = query.reshape(rows, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    weights = (grouped @ key.transpose(2, 3)).add_(attention_mask).softmax(-1)
    return (weights.to(value.dtype) @ value).reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, decode_attention)


def attention_for_slots(model: PreTrainedModel) -> str:
    """The attention implementation for decoding: one that supports additive 4D masks."""
    present = model.config._attn_implementation
    if present == "eager" or not model._supports_sdpa:
        return "eager"
    return NAME
