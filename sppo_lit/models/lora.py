"""Low-rank adapters (LoRA, arXiv 2106.09685) by PEFT, to be trained in a model, or merged into its weights.

Those to be trained are injected in place, and everything else is frozen.
W x becomes W x + alpha / rank · B A x, with W [O, I] frozen, A [rank, I] and B [O, rank]; B starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo_lit.errors import InputError

NAME = "default"
BASE = ".base_layer."


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, targets: str | Sequence[str]) -> None:
    """Add adapters to linear layers, and freeze everything else.

    Args:
        model: a causal language model.
        rank: rank of every adapter.
        alpha: numerator of the scale.
        targets: "all-linear" (all but the output layer), or suffixes of layer names.

    Raises:
        InputError: PEFT is not installed, or the targets match no layers or unsupported ones.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear
    except ModuleNotFoundError:
        raise InputError("model.lora needs the extra: pip install 'sppo-lit[lora]'") from None
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
    config = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets), **settings)
    try:
        inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        raise InputError(f"model.lora.targets {targets}: {str(error).splitlines()[0][:200]}") from error
    for name, layer in adapters(model).items():
        if not isinstance(layer, Linear):
            raise InputError(f"model.lora.targets {targets}: {name} is not a linear layer; leave it out")
    if model.config.tie_word_embeddings and hasattr(model.get_output_embeddings(), "lora_A"):
        raise InputError(f"model.lora.targets {targets}: the output layer shares its weights with the embedding")


def adapters(model: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by their name in the model without adapters."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable the adapters inside the block, which must not need gradients."""
    layers = adapters(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(
    model: nn.Module, named: Iterator[tuple[str, Tensor]], whole: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a model with its adapters merged: W + alpha / rank · B A under the name of W.

    Args:
        model: a model with or without adapters.
        named: its names and tensors of any shapes, W [O, I] among them.
        whole: returns the unsharded value of a tensor without gradient (collective if it is sharded).
    """
    layers = adapters(model)
    for name, tensor in named:
        if ".lora_" in name:
            continue
        layer = layers.get(name.partition(BASE)[0]) if name.endswith(f"{BASE}weight") else None
        value = whole(tensor)
        if layer is not None:
            a, b = (whole(part[NAME].weight) for part in (layer.lora_A, layer.lora_B))
            change = (b @ a) * layer.scaling[NAME]
            value = value + (change.T if layer.fan_in_fan_out else change).to(value.device, value.dtype)
        yield name.replace(BASE, "."), value


def save_adapters(folder: Path | None, model: nn.Module, base: str, whole: Callable[[Tensor], Tensor]) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        folder: target; None on ranks that do not write.
        model: model with adapters, A [rank, I] and B [O, rank].
        base: path of the model they belong to.
        whole: see `merged`.
    """
    from safetensors.torch import save_file

    state = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": whole(p).cpu().contiguous()
        for name, p in model.named_parameters()
        if ".lora_" in name
    }
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config[NAME]  # type: ignore[index, union-attr]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a saved adapter merged into its weights.

    Args:
        model: a causal language model, or a classifier on the same backbone.
        adapter: folder or Hub id of an adapter of PEFT.

    Raises:
        InputError: PEFT is not installed, or the adapter cannot be read or belongs to another model.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ModuleNotFoundError:
        raise InputError(f"adapter {adapter}: it needs the extra: pip install 'sppo-lit[lora]'") from None
    try:
        config = PeftConfig.from_pretrained(adapter)
        config.task_type = None  # an adapter of a causal language model suits a critic on the same backbone
        adapted: Any = PeftModel(model, config, NAME)
        found = adapted.load_adapter(adapter, NAME, torch_device="cpu")
        if misfits := [*found.missing_keys, *found.unexpected_keys]:
            raise ValueError(f"{len(misfits)} parameters belong to one of them alone, first {misfits[0]}")
        return cast(PreTrainedModel, adapted.merge_and_unload().requires_grad_(True))  # PEFT had frozen all
    except Exception as error:  # PEFT's reader raises what its formats raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"adapter {adapter}: not a readable adapter of this model ({why})") from error
