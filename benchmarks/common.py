"""Shared by the benchmarks of small models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(shape: dict[str, Any], vocabulary: int, device: str) -> Any:
    """A Llama with random weights, the same at every call; token 0 pads, and there is no end-of-sequence token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        intermediate_size=4 * shape["hidden_size"],
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(device)


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of a call, queued work on the device included."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start
