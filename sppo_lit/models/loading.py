"""From a recipe's model entry to a Hugging Face model and tokenizer, with one clear line for what cannot be loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sppo_lit.errors import InputError
from sppo_lit.settings import ModelSource
from sppo_lit.utils.paths import find

NEW_HEADS = ("score.", "classifier.")
"""Parameters that a sequence classifier made from a causal language model is expected to lack."""


def locate(source: ModelSource) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a source.

    Raises:
        InputError: no such folder or file, or the extra that reads it is missing.
    """
    path = find(source.path)
    if not path.endswith(".gguf"):
        if not Path(path).exists() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
            raise InputError(f"{source.path}: no such model folder; give a folder, a .gguf file or a Hub id")
        return {"pretrained_model_name_or_path": path, "revision": source.revision}
    try:
        import accelerate  # noqa: F401 - transformers reads GGUF through it
        import gguf  # noqa: F401
    except ImportError:
        raise InputError(f"{source.path}: reading GGUF needs the extra: pip install 'sppo-lit[gguf]'") from None
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{source.path}: no such GGUF file")
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, with a pad token.

    Raises:
        InputError: none found, or it has no end-of-sequence token.
    """
    where = locate(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # whatever the reader of each format raises at a bad file
        raise InputError(
            f"{source.path}: no tokenizer could be loaded ({_first_line(error)}); check model.policy.path"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source.path}: the tokenizer has no end-of-sequence token; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: ModelSource, tokenizer: PreTrainedTokenizerBase, empty: bool = False) -> PreTrainedModel:
    """The policy's network, float32, dropout off; if `empty`, without its weights (on the meta device).

    Raises:
        InputError: not found, no causal language model, weights missing, or fewer embeddings than the tokenizer has
            tokens.
    """
    model = skeleton(source, torch.float32, "none") if empty else _load(source, AutoModelForCausalLM, {})[0]
    return _finish(source, model, tokenizer)


AutoClass = (
    type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification] | type[AutoModelForTokenClassification]
)

CRITICS: dict[str, AutoClass] = {"scalar": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
"""Kind of critic → the Auto class that loads and saves it, with one label."""


def load_critic(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, kind: Literal["scalar", "token"], empty: bool = False
) -> PreTrainedModel:
    """The critic's network: a classifier of sequences or of tokens with one label, float32, dropout off.

    A source that is a causal language model gives its backbone; the head starts at zero, so that every prompt, or every
    token, is worth the same.

    Args:
        source: where from.
        tokenizer: the policy's; the critic reads the same prompt ids.
        kind: "scalar" reads a prompt, "token" the response as well.
        empty: without its weights (on the meta device), and hence without what can be told from them.

    Raises:
        InputError: not found, no such architecture, weights missing, or another vocabulary.
    """
    if empty:
        return _finish(source, skeleton(source, torch.float32, kind), tokenizer)
    if source.init == "pretrained" and not source.path.endswith(".gguf"):
        where = locate(source)
        try:
            other = AutoTokenizer.from_pretrained(**where)
        except Exception:
            other = None  # a bare model folder: the size of its embedding decides below
        if other is not None and other.get_vocab() != tokenizer.get_vocab():
            raise InputError(
                f"critic {source.path}: its vocabulary ({len(other)} tokens) is not the policy's ({len(tokenizer)}); "
                "the critic reads the policy's prompt ids, so choose a model of the same family"
            )
    model, new_head = _load(source, CRITICS[kind], {"num_labels": 1})
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"critic {source.path}: {type(model).__name__} has no linear head named score, so it is not made from a "
            "causal language model; choose one that is in model.critic.path"
        )
    if new_head:
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return _finish(source, model, tokenizer)


def skeleton(source: ModelSource, dtype: torch.dtype, critic: Literal["none", "scalar", "token"]) -> PreTrainedModel:
    """A network without weights (on the meta device), of which nothing but the configuration is read.

    Args:
        source: where its configuration comes from.
        dtype: of the weights it would have.
        critic: the kind of critic it is; "none" is a causal language model.

    Raises:
        InputError: no such configuration or architecture.
    """
    overrides = {} if critic == "none" else {"num_labels": 1}
    try:
        with torch.device("meta"):
            return _from_config(source, CRITICS.get(critic, AutoModelForCausalLM), overrides, dtype)
    except Exception as error:  # whatever the reader of each format raises at a bad file
        raise InputError(f"{source.path}: no model configuration ({_first_line(error)}); check its path") from error


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the tokenizer's and those of the generation config (which may list several)."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    return sorted({int(tokenizer.eos_token_id), *ids})


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off in every module, whatever mode the model is in: π and π_old must be the same function.

    The configuration keeps its values, so that an exported model is trained elsewhere as its authors meant.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:  # dropout, attn_pdrop, layerdrop
                setattr(module, name, 0.0)


def _load(source: ModelSource, auto: AutoClass, overrides: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """A model with its weights, and whether its head is a new one that the source has no weights for."""
    where = locate(source)
    try:
        if source.init == "random":
            return _from_config(source, auto, overrides, torch.float32), True
        with _without_report():
            loaded = auto.from_pretrained(**where, **overrides, dtype=torch.float32, output_loading_info=True)
        model, info = cast(tuple[PreTrainedModel, dict[str, list[str]]], loaded)
    except Exception as error:  # whatever the reader of each format raises at a bad file
        kind = "causal language model" if auto is AutoModelForCausalLM else "critic (a classifier)"
        why = _first_line(error)
        if "ignore_mismatched_sizes" in why:
            why = "its weights are of other shapes than its config.json says"
        raise InputError(f"{source.path}: no {kind} could be loaded from it ({why}); check the model's path") from error
    new_head = [key for key in info["missing_keys"] if key.startswith(NEW_HEADS)]
    missing = sorted(set(info["missing_keys"]) - set(new_head))
    if missing or (new_head and auto is AutoModelForCausalLM):
        raise InputError(
            f"{source.path}: its weights lack {len(missing)} parameters of {type(model).__name__}, first {missing[0]}"
        )
    if "gguf_file" in where:
        model = _dequantised(model)
    return model, bool(new_head)


def _from_config(
    source: ModelSource, auto: AutoClass, overrides: dict[str, Any], dtype: torch.dtype
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(**locate(source), **source.config, **overrides)
    return auto.from_config(config, dtype=dtype)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep back transformers' table of missing weights: a new critic has to lack its head, and all else is checked."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that no longer believes itself quantised, so that it can be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    if model.can_generate():
        fresh.generation_config = model.generation_config
    return fresh.float()


def _finish(source: ModelSource, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if rows < len(tokenizer):
        raise InputError(f"{source.path}: {rows} embeddings for a vocabulary of {len(tokenizer)} tokens")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    disable_dropout(model)
    return model


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Compute each layer's activations again in the backward pass instead of keeping them.

    Layers heed this in training mode only, which pretrained models are not in.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
