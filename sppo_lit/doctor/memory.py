"""Memory and disk needs of a run, estimated from configurations: no weights are read, nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sppo_lit.models.loading import skeleton
from sppo_lit.models.lora import add_adapters
from sppo_lit.models.policy import LOGITS_PER_CHUNK
from sppo_lit.rollout.checks import vocabulary
from sppo_lit.rollout.slot_cache import SlotCache, SlotLayer
from sppo_lit.settings import LoraSettings, ModelSource

WEIGHTS = {"bf16-true": torch.bfloat16, "64": torch.float64, "64-true": torch.float64}
"""Data type of the weights by Lightning precision; float32 for all others."""

LOGIT_COPIES = 6
"""Float32 tensors of a chunk's size alive at once: logits, divided, normalised, two of the entropy, one gradient."""

CHECKPOINTS = 4
"""Checkpoints on disk at once: best, previous, last, and the one being written."""

CriticKind = Literal["none", "scalar", "token"]

CAUSAL = "sppo_causal"

DRAW_BYTES = 24
"""Per sequence and entry of the vocabulary while one token is drawn: logits, weights and their float64 sums."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a run that determine its memory.

    Attributes:
        policy: where the policy comes from.
        critic: where the critic comes from.
        critic_kind: kind of critic; "none" without one.
        reference: where the frozen reference policy comes from; None for none.
        precision: Lightning's `precision`.
        ranks: number of processes.
        sharded: weights, gradients and optimizer states are sharded over the ranks.
        micro_batch_tokens: maximum tokens of one forward pass with gradient.
        prompt_tokens: longest prompt.
        response_tokens: longest response.
        concurrent: sequences decoded at once.
        gradient_checkpointing: each layer's activations are recomputed in the backward pass.
        lora: adapters trained instead of the policy's weights.
        cpu_offload: weights, gradients and optimizer states are kept in CPU memory.
    """

    policy: ModelSource
    critic: ModelSource
    critic_kind: CriticKind
    reference: ModelSource | None
    precision: str
    ranks: int
    sharded: bool
    micro_batch_tokens: int
    prompt_tokens: int
    response_tokens: int
    concurrent: int
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = None
    cpu_offload: bool = False

    @property
    def weights(self) -> torch.dtype:
        """Data type of the weights."""
        return WEIGHTS.get(self.precision, torch.float32)


@dataclass(frozen=True)
class Network:
    """Sizes of one network in bytes.

    Attributes:
        weights: all parameters.
        trained: parameters with gradients.
        vocabulary: rows of the embedding (a count).
        largest_layer: parameters of the largest decoder layer.
        outside_layers: parameters outside the decoder layers.
        activations: saved for the backward pass of one micro-batch.
        per_token: keys and values of one token in all layers.
    """

    weights: int
    trained: int
    vocabulary: int
    largest_layer: int
    outside_layers: int
    activations: int
    per_token: int


@dataclass(frozen=True)
class Need:
    """One line of an estimate: bytes held by each process while sampling and while updating."""

    what: str
    sampling: int
    updating: int


def needs(plan: Plan) -> list[Need]:
    """Peak memory of each process while sampling and while updating.

    Assumes that every sequence is as long as allowed and every micro-batch full.

    Raises:
        InputError: a configuration that cannot be read.
    """
    trained, share = networks(plan), plan.ranks if plan.sharded else 1
    policy = trained[0]
    frozen = network(replace(plan, lora=None), plan.reference).weights if plan.reference else 0
    weights, learnable = sum(n.weights for n in trained), sum(n.trained for n in trained)
    cache = plan.concurrent * (plan.prompt_tokens + plan.response_tokens) * policy.per_token
    chunk = min(LOGITS_PER_CHUNK, plan.micro_batch_tokens * policy.vocabulary)

    def shard(size: int) -> int:
        return 0 if plan.cpu_offload else -(-size // share)

    # FSDP gathers embeddings, head and up to two layers at a time.
    gathered = max(n.outside_layers + 2 * n.largest_layer for n in trained) if plan.sharded else 0
    return [
        Need("weights of policy and critic", shard(weights), shard(weights)),
        Need("two AdamW moments of each", 2 * shard(learnable), 2 * shard(learnable)),
        Need("weights of the reference policy", shard(frozen), shard(frozen)),
        Need("unsharded copy of the policy for sampling", *([policy.weights] * 2 if plan.sharded else [0, 0])),
        Need("keys and values of the longest sequences", cache, 0),
        Need("probabilities of the next token", plan.concurrent * policy.vocabulary * DRAW_BYTES, 0),
        Need("gradients of one network at a time", 0, max(shard(n.trained) for n in trained)),
        Need("activations of one micro-batch", 0, max(n.activations for n in trained)),
        Need("logits of one chunk of tokens", 0, LOGIT_COPIES * 4 * chunk),
        Need("layers gathered from the other ranks", 0, 2 * gathered),  # with their gradients
    ]


def peak(estimate: list[Need]) -> int:
    """Bytes of one process in the larger of the two phases."""
    return max(sum(n.sampling for n in estimate), sum(n.updating for n in estimate))


def disk_bytes(plan: Plan) -> int:
    """Size of a run's folder: `CHECKPOINTS` checkpoints and the exported models."""
    return sum(CHECKPOINTS * (n.weights + 2 * n.trained) + n.weights for n in networks(plan))


def networks(plan: Plan) -> list[Network]:
    """Sizes of the policy and, if there is one, of the critic."""
    return [
        network(plan, plan.policy),
        *([network(replace(plan, lora=None), plan.critic, plan.critic_kind)] if plan.critic_kind != "none" else []),
    ]


def network(plan: Plan, source: ModelSource, critic: CriticKind = "none") -> Network:
    """Sizes of a policy's or a critic's network in this run, from a forward pass over fake tensors.

    Raises:
        InputError: a configuration that cannot be read.
    """
    model = skeleton(source, plan.weights, critic)
    if plan.lora is not None:
        with torch.device("meta"):
            add_adapters(model, plan.lora.rank, plan.lora.alpha, plan.lora.targets)
    with FakeTensorMode():
        _to_fake_tensors(model)
        model.config.use_cache = False
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(CAUSAL)
        longest = plan.prompt_tokens + (0 if critic == "scalar" else plan.response_tokens)
        rows = max(1, plan.micro_batch_tokens // longest)
        ids = torch.zeros((rows, longest), dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16-mixed", cache_enabled=False):
            kept, states = kept_bytes(model.base_model, ids)
            per_token = cache_bytes(model) if critic == "none" else 0
        layers = [m for m in model.modules() if type(m).__name__ in set(model._no_split_modules or ())]
        if plan.gradient_checkpointing and layers:  # each layer saves its input; one at a time is recomputed
            kept = len(layers) * states + kept // len(layers)
        sizes = [_bytes(layer) for layer in layers] or [0]
        total = _bytes(model)
        return Network(
            weights=total,
            trained=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
            vocabulary=vocabulary(model),
            largest_layer=max(sizes),
            outside_layers=total - sum(sizes),
            activations=kept,
            per_token=per_token,
        )


def kept_bytes(model: nn.Module, ids: Tensor) -> tuple[int, int]:
    """Bytes that a forward pass over [B, L] token ids saves for the backward pass, and bytes of its last hidden states.

    Parameters are not counted; tensors saved twice count once.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(input_ids=ids, use_cache=False).last_hidden_state
    return sum(s.nbytes() for s in kept.values()), states.numel() * states.element_size()


def cache_bytes(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in the sampler's cache."""
    columns, start = 16, torch.zeros(1, dtype=torch.int64)
    cache = SlotCache(columns, model.dtype, torch.device("cpu"))
    cache.begin_prefill(1, 0, start, start, start + columns, columns)
    with torch.no_grad():
        ids = torch.zeros((1, columns), dtype=torch.int64)
        model(input_ids=ids, attention_mask=cache.attention_mask, past_key_values=cache, use_cache=True)
    stores = [store for layer in cache.layers if isinstance(layer, SlotLayer) for store in layer.stores()]
    return sum(store.numel() * store.element_size() for store in stores) // columns


def _causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of a real pass without padding; on fake tensors transformers would add a mask."""
    return sdpa_attention_forward(module, query, key, value, None, **{**options, "is_causal": True})


AttentionInterface.register(CAUSAL, _causal_attention)


def _to_fake_tensors(model: nn.Module) -> None:
    """Replace meta tensors by fake tensors, which have a device; tied ones stay tied."""
    converted: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                if id(p) not in converted:
                    converted[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad)
                module._parameters[name] = converted[id(p)]
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
