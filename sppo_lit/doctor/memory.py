"""How much memory and disk a run needs, told from configurations alone: no weights are read, nothing is allocated."""

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
"""On disk at once, of four iterations: the best, the one before the last, the last, and the one being written."""

CriticKind = Literal["none", "scalar", "token"]

CAUSAL = "sppo_causal"

DRAW_BYTES = 24
"""Per sequence and entry of the vocabulary while one token is drawn: logits, weights and their float64 sums."""


@dataclass(frozen=True)
class Plan:
    """What a run asks of one process.

    Attributes:
        policy: where the policy comes from.
        critic: where the critic comes from.
        critic_kind: what it reads; "none" if there is none.
        reference: where the frozen reference policy comes from; None for none.
        precision: Lightning's name.
        ranks: processes of the run.
        sharded: weights, gradients and optimizer states are divided among the ranks.
        micro_batch_tokens: most tokens of one forward pass with gradient.
        prompt_tokens: longest prompt.
        response_tokens: longest response.
        concurrent: sequences decoded at once.
        gradient_checkpointing: each layer's activations are computed again in the backward pass.
        lora: adapters trained instead of the policy's weights.
        cpu_offload: weights, gradients and optimizer states are elsewhere, in the CPU's memory.
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
        trained: those that get gradients.
        vocabulary: rows of its embedding.
        largest_layer: parameters of the largest decoder layer.
        around: parameters outside the decoder layers.
        activations: kept for the backward pass of one micro-batch.
        per_token: keys and values of one token in all layers.
    """

    weights: int
    trained: int
    vocabulary: int
    largest_layer: int
    around: int
    activations: int
    per_token: int


@dataclass(frozen=True)
class Need:
    """One line of an estimate: what is held, in bytes while sampling and in bytes while updating, on each process."""

    what: str
    sampling: int
    updating: int


def needs(plan: Plan) -> list[Need]:
    """What each process holds at the worst moment of sampling and of updating.

    The worst is: every sequence as long as allowed, every micro-batch full.

    Raises:
        InputError: a configuration that cannot be read.
    """
    trained, share = networks(plan), plan.ranks if plan.sharded else 1
    policy = trained[0]
    frozen = network(replace(plan, lora=None), plan.reference).weights if plan.reference else 0
    weights, learned = sum(n.weights for n in trained), sum(n.trained for n in trained)
    cache = plan.concurrent * (plan.prompt_tokens + plan.response_tokens) * policy.per_token
    chunk = min(LOGITS_PER_CHUNK, plan.micro_batch_tokens * policy.vocabulary)

    def piece(size: int) -> int:
        return 0 if plan.cpu_offload else -(-size // share)

    # A sharded network has its embeddings, its head and up to two layers whole while they are at work.
    gathered = max(n.around + 2 * n.largest_layer for n in trained) if plan.sharded else 0
    return [
        Need("weights of policy and critic", piece(weights), piece(weights)),
        Need("two AdamW moments of each", 2 * piece(learned), 2 * piece(learned)),
        Need("weights of the reference policy", piece(frozen), piece(frozen)),
        Need("whole copy of the policy that decodes", *([policy.weights] * 2 if plan.sharded else [0, 0])),
        Need("keys and values of the longest sequences", cache, 0),
        Need("probabilities of the next token", plan.concurrent * policy.vocabulary * DRAW_BYTES, 0),
        Need("gradients of one network at a time", 0, max(piece(n.trained) for n in trained)),
        Need("activations of one micro-batch", 0, max(n.activations for n in trained)),
        Need("logits of one chunk of tokens", 0, LOGIT_COPIES * 4 * chunk),
        Need("layers gathered from the other ranks", 0, 2 * gathered),  # with their gradients
    ]


def peak(estimate: list[Need]) -> int:
    """Bytes of one process in the worse of the two phases."""
    return max(sum(n.sampling for n in estimate), sum(n.updating for n in estimate))


def disk_bytes(plan: Plan) -> int:
    """Bytes of a run's folder: `CHECKPOINTS` checkpoints and the exported models."""
    return sum(CHECKPOINTS * (n.weights + 2 * n.trained) + n.weights for n in networks(plan))


def networks(plan: Plan) -> list[Network]:
    """Sizes of the policy and, if there is one, of the critic."""
    return [
        network(plan, plan.policy),
        *([network(replace(plan, lora=None), plan.critic, plan.critic_kind)] if plan.critic_kind != "none" else []),
    ]


def network(plan: Plan, source: ModelSource, critic: CriticKind = "none") -> Network:
    """Sizes of a policy's or a critic's network in this run, from a forward pass over made-up tensors.

    Raises:
        InputError: a configuration that cannot be read.
    """
    model = skeleton(source, plan.weights, critic)
    if plan.lora is not None:
        with torch.device("meta"):
            add_adapters(model, plan.lora.rank, plan.lora.alpha, plan.lora.targets)
    with FakeTensorMode():
        _pretend(model)
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
        if plan.gradient_checkpointing and layers:  # each layer keeps what it read; one at a time is computed again
            kept = len(layers) * states + kept // len(layers)
        sizes = [_bytes(layer) for layer in layers] or [0]
        everything = _bytes(model)
        return Network(
            weights=everything,
            trained=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
            vocabulary=vocabulary(model),
            largest_layer=max(sizes),
            around=everything - sum(sizes),
            activations=kept,
            per_token=per_token,
        )


def kept_bytes(model: nn.Module, ids: Tensor) -> tuple[int, int]:
    """What a forward pass over [B, L] token ids keeps for the backward pass, and its last hidden states, in bytes.

    Parameters are not counted, whatever is kept twice counts once.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(input_ids=ids, use_cache=False).last_hidden_state
    return sum(s.nbytes() for s in kept.values()), states.numel() * states.element_size()


def cache_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one token in the sampler's cache, in bytes."""
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
    """What a real pass without padding does; on fake tensors transformers would make a mask that no real pass has."""
    return sdpa_attention_forward(module, query, key, value, None, **{**options, "is_causal": True})


AttentionInterface.register(CAUSAL, _causal_attention)


def _pretend(model: nn.Module) -> None:
    """Fake tensors, which have a device, in place of those on the meta device; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                if id(p) not in made:
                    made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad)
                module._parameters[name] = made[id(p)]
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
