"""Checks of models and inputs before decoding, with one-line errors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.types import Sampling

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_ELSEWHERE = "choose another model, or name a custom engine in model.rollout.engine"


def vocabulary(model: PreTrainedModel) -> int:
    """Vocabulary size: number of input token ids."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    return embeddings.weight.shape[0]


def takes_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether the model can compute the logits of the last position only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def cache_argument(model: PreTrainedModel) -> str:
    """The argument that takes the cache; transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def check_model(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Reject models whose cache is not one row of keys and values per token.

    Raises:
        InputError: such a model; or one of `ids` is not in the vocabulary.
    """
    name = type(model).__name__
    known = inspect.signature(model.forward).parameters
    lacking = {"attention_mask", "position_ids", cache_argument(model)} - known.keys()
    if lacking:
        raise InputError(f"{name} cannot be sampled by the torch engine (no argument {min(lacking)}): {_ELSEWHERE}")
    other = set(_layer_types(model)) - _ATTENTION
    if other:
        raise InputError(f"{name} has {min(other)} layers, which the torch engine cannot sample: {_ELSEWHERE}")
    for token in ids:
        if not 0 <= token < vocabulary(model):
            raise InputError(f"EOS or padding id {token} is outside the {vocabulary(model)} tokens of {name}")


def check_inputs(
    size: int,
    positions: int,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: Sampling,
    keys: Sequence[int] | None,
    limited: str,
) -> None:
    """Reject invalid arguments of `RolloutEngine.generate`.

    Args:
        size: vocabulary size.
        positions: longest prompt and response together, except for the last token, in tokens.
        prompts: token ids of each prompt.
        limits: longest response to each, in tokens.
        sampling: sampling parameters.
        keys: seed of each response.
        limited: what has only so many positions, and what to do about it.

    Raises:
        InputError: an empty prompt, a token outside the vocabulary, a limit below 1, sampling without keys, or more
            tokens than positions.
    """
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise InputError(
            f"sampling with temperature {sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}: "
            "they must be >= 0, in (0, 1] and >= 0"
        )
    if keys is None and not sampling.greedy:
        raise InputError("sampling needs a key per prompt (sequence_key): pass keys, or set temperature to 0")
    for what, values in (("keys", keys), ("max_new_tokens", limits)):
        if values is not None and len(values) != len(prompts):
            raise InputError(f"{len(values)} {what} for {len(prompts)} prompts: pass one for each")
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise InputError(f"prompt {i} is empty: give it at least one token")
        if limit < 1:
            raise InputError(f"max_new_tokens of prompt {i} is {limit}: set it to 1 or more")
        if min(prompt) < 0 or max(prompt) >= size:
            raise InputError(f"prompt {i} has a token outside the model's vocabulary of {size}: check the tokenizer")
        if len(prompt) + limit - 1 > positions:
            raise InputError(f"prompt {i} has {len(prompt)} tokens and may grow by {limit}, but {limited}")


def check_positions(model: PreTrainedModel) -> tuple[int, str]:
    """Positions of the torch engine with a model, and what to say when they are too few."""
    name, most = type(model).__name__, _positions(model)
    return most, f"the torch engine can give {name} only {most} positions: lower max_new_tokens or {_ELSEWHERE}"


def finite(logprobs: list[float]) -> list[float]:
    """The same log-probabilities.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    if not math.isfinite(sum(logprobs)):
        raise FloatingPointError("the policy's logits are not finite: lower the learning rate or clip gradients")
    return logprobs


def _layer_types(model: PreTrainedModel) -> list[str]:
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    if types is not None:
        return list(types)
    if getattr(config, "sliding_window", None) is not None:
        return ["sliding_attention"]
    return ["chunked_attention"] if getattr(config, "attention_chunk_size", None) is not None else ["full_attention"]


def _positions(model: PreTrainedModel) -> int:
    """Longest sequence with full attention, limited by position embeddings and attention windows."""
    config, types = model.config.get_text_config(), _layer_types(model)
    limits = [getattr(config, "max_position_embeddings", None)]
    if "sliding_attention" in types:
        limits.append(getattr(config, "sliding_window", None))
    if "chunked_attention" in types:
        limits.append(getattr(config, "attention_chunk_size", None))
    return min([limit for limit in limits if limit is not None], default=2**62)
