"""Loading of Hugging Face models and tokenizers from a recipe's entry, with one-line errors."""

from __future__ import annotations

import json
import logging
import re
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
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sppo_lit.errors import InputError
from sppo_lit.models.lora import merge_adapter
from sppo_lit.settings import ModelSource
from sppo_lit.utils.hub import no_retries_offline, why_not
from sppo_lit.utils.paths import find

CONFIGS = Path(__file__).parent / "configs"
"""Configurations of the models in the paper's recipes, as published, so that their needs are known without the Hub."""

EXPORT = re.compile(r"lightning_logs/([^/-]+)-([^/]+)/version_\d+/hf/")
"""Path of an export of the run of ``recipes/<1>/<2>.yaml``."""

NEW_HEADS = ("score.", "classifier.")
"""Prefixes of parameters that are missing when a causal language model is loaded as a classifier."""


def locate(source: ModelSource) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a source.

    Raises:
        InputError: no such folder or file, or the extra for GGUF is missing.
    """
    path = find(source.path)
    if not path.endswith(".gguf"):
        if not Path(path).exists() and _no_hub_id(path):
            raise InputError(f"{source.path}: no such model folder; {_how_to_get(path)}")
        if Path(path).is_file():
            raise InputError(f"{source.path}: a file; give a model's folder, a .gguf file or a Hub id")
        if not Path(path).exists():
            no_retries_offline()
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


def on_hub(source: ModelSource) -> bool:
    """Whether a source's weights come from the Hub, as far as its path tells."""
    path = find(source.path)
    return (
        source.init == "pretrained" and not path.endswith(".gguf") and not Path(path).exists() and not _no_hub_id(path)
    )


def _no_hub_id(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def _how_to_get(path: str) -> str:
    """What to do about a folder that is missing: if it is the export of a recipe's run, that recipe."""
    run = EXPORT.match(path)
    recipe = f"recipes/{run[1]}/{run[2]}.yaml" if run else ""
    if recipe and Path(find(recipe)).is_file():
        return f"'lightning run {recipe}' makes it"
    return "give a folder, a .gguf file or a Hub id"


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, with a pad token.

    Raises:
        InputError: it cannot be loaded, or has no end-of-sequence token.
    """
    where = locate(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # each format's reader raises its own exceptions
        raise _unreadable(source, f"no tokenizer could be loaded ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source.path}: the tokenizer has no end-of-sequence token; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: ModelSource, tokenizer: PreTrainedTokenizerBase, empty: bool = False) -> PreTrainedModel:
    """The policy's network, float32, dropout off; if `empty`, without its weights (on the meta device).

    Raises:
        InputError: not found, not a causal language model, missing weights, or fewer embeddings than tokens.
    """
    model = skeleton(source, torch.float32, "none") if empty else _load(source, AutoModelForCausalLM, {})[0]
    return _finish(source, model, tokenizer)


AutoClass = (
    type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification] | type[AutoModelForTokenClassification]
)

CRITICS: dict[str, AutoClass] = {"scalar": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
"""Kind of critic → the Auto class that loads and saves it, with one label."""

CLASSIFIERS = {"scalar": "ForSequenceClassification", "token": "ForTokenClassification"}
"""Kind of critic → the end of its class's name."""


def load_critic(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, kind: Literal["scalar", "token"], empty: bool = False
) -> PreTrainedModel:
    """The critic's network: a classifier of sequences or of tokens with one label, float32, dropout off.

    Of a causal language model the backbone is used; the head is initialised to zero, so that V is the same for every
    prompt or token. An exported critic of the same kind keeps its head; one of the other kind lends its backbone alone.

    Args:
        source: where the critic comes from.
        tokenizer: the policy's; the critic reads the same prompt ids.
        kind: "scalar" reads only the prompt, "token" also the response.
        empty: without its weights (on the meta device), and without the checks that need them.

    Raises:
        InputError: not found, unsupported architecture, missing weights, or a different vocabulary.
    """
    if empty:
        return _finish(source, skeleton(source, torch.float32, kind), tokenizer)
    if source.init == "pretrained" and not source.path.endswith(".gguf"):
        where = locate(source)
        try:
            other = AutoTokenizer.from_pretrained(**where)
        except Exception:
            other = None  # a model folder without tokenizer: `_finish` checks the size of its embedding
        if other is not None and other.get_vocab() != tokenizer.get_vocab():
            raise InputError(
                f"critic {source.path}: its vocabulary ({len(other)} tokens) is not the policy's ({len(tokenizer)}); "
                "the critic reads the policy's prompt ids, so choose a model of the same family"
            )
    model, new_head = _load(source, CRITICS[kind], {"num_labels": 1})
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"critic {source.path}: {type(model).__name__} has no linear head named score, so it is not based on "
            "a causal language model; choose one that is in model.critic.path"
        )
    foreign = CLASSIFIERS["token" if kind == "scalar" else "scalar"]
    if new_head or any(name.endswith(foreign) for name in model.config.architectures or []):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return _finish(source, model, tokenizer)


def skeleton(
    source: ModelSource,
    dtype: torch.dtype,
    critic: Literal["none", "scalar", "token"],
    layers: int | None = None,
) -> PreTrainedModel:
    """A network without weights (on the meta device), from its configuration alone.

    Args:
        source: where the configuration comes from.
        dtype: dtype of the weights.
        critic: kind of critic; "none" for a causal language model.
        layers: only so many of its decoder layers; None for all.

    Raises:
        InputError: no such configuration or architecture.
    """
    overrides = {} if critic == "none" else {"num_labels": 1}
    try:
        with torch.device("meta"):
            return _from_config(source, CRITICS.get(critic, AutoModelForCausalLM), overrides, dtype, layers)
    except InputError:
        raise
    except Exception as error:  # each format's reader raises its own exceptions
        raise _unreadable(source, f"no model configuration ({_first_line(error)})") from error


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the tokenizer's and those of the generation config (which may list several)."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    return sorted({int(tokenizer.eos_token_id), *ids})


def disable_dropout(model: nn.Module) -> None:
    """Disable dropout in every module, also in training mode: π and π_old must be the same function.

    The configuration keeps its values, so that an exported model can be trained elsewhere with its own dropout.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:  # dropout, attn_pdrop, layerdrop
                setattr(module, name, 0.0)


def _load(source: ModelSource, auto: AutoClass, overrides: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """A model with its weights, and whether its head is newly initialised."""
    where = locate(source)
    try:
        if source.init == "random":
            return _from_config(source, auto, overrides, torch.float32), True
        with _without_report(), _without_bar("gguf_file" in where):
            loaded = auto.from_pretrained(**where, **overrides, dtype=torch.float32, output_loading_info=True)
        model, info = cast(tuple[PreTrainedModel, dict[str, list[str]]], loaded)
    except Exception as error:  # each format's reader raises its own exceptions
        kind = "causal language model" if auto is AutoModelForCausalLM else "critic (a classifier)"
        why = _first_line(error)
        if "ignore_mismatched_sizes" in why:
            why = "the shapes of its weights do not match its config.json"
        raise _unreadable(source, f"no {kind} could be loaded from it ({why})") from error
    new_head = [key for key in info["missing_keys"] if key.startswith(NEW_HEADS)]
    missing = sorted(set(info["missing_keys"]) - set(new_head))
    if missing or (new_head and auto is AutoModelForCausalLM):
        raise InputError(
            f"{source.path}: its weights lack {len(missing)} parameters of {type(model).__name__}, first {missing[0]}"
        )
    if "gguf_file" in where:
        model = _dequantised(model)
    if source.adapter is not None:
        model = merge_adapter(model, find(source.adapter))
    return model, bool(new_head)


def _from_config(
    source: ModelSource, auto: AutoClass, overrides: dict[str, Any], dtype: torch.dtype, layers: int | None = None
) -> PreTrainedModel:
    config = _config(source, overrides)
    if source.config and hasattr(config, "validate"):  # else only when the trained model is exported
        try:
            config.validate()
        except Exception as error:
            raise ValueError(str(error.__cause__ or error)) from error
    if getattr(config, "num_hidden_layers", 1) < 1:  # transformers builds a model without layers
        raise ValueError(f"num_hidden_layers = {config.num_hidden_layers}: a model has at least one")
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return auto.from_config(config, dtype=dtype)


def _config(source: ModelSource, overrides: dict[str, Any]) -> PretrainedConfig:
    """A configuration: of a folder, of the local cache, shipped with this package, or of the Hub, in this order."""
    where = locate(source)
    shipped = CONFIGS / f"{source.path.rpartition('/')[2]}.json"
    if not Path(where["pretrained_model_name_or_path"]).exists() and shipped.is_file() and source.revision is None:
        try:
            return AutoConfig.from_pretrained(**where, **source.config, **overrides, local_files_only=True)
        except Exception:  # not in the cache
            content = json.loads(shipped.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**{**content, **source.config, **overrides})
    return AutoConfig.from_pretrained(**where, **source.config, **overrides)


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence transformers' report of missing weights: a new critic lacks its head, and everything else is checked."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_not_load_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_load_report)


@contextmanager
def _without_bar(gguf: bool) -> Iterator[None]:
    """Read GGUF without transformers' progress bar, which heeds none of its own settings."""
    if not gguf:
        yield
        return
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar


def _is_not_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that is no longer marked as quantised, so that it can be saved."""
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
    """Recompute each layer's activations in the backward pass instead of keeping them.

    Layers do so only in training mode, which pretrained models are not in.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _unreadable(source: ModelSource, what: str) -> InputError:
    """Why a source could not be read: for what is not on this disk perhaps the connection."""
    hub = "" if Path(find(source.path)).exists() else why_not()
    return InputError(f"{source.path}: {hub or f'{what}; check the path of the model'}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
