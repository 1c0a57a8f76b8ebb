"""Memory and disk needs of a run, from configurations: no weights are read, nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from sppo_lit.doctor.simulation import CriticKind, Shape, sampling_bytes, update_bytes
from sppo_lit.models.loading import skeleton
from sppo_lit.models.lora import add_adapters
from sppo_lit.rollout.torch_engine import cache_bytes, decode_dtypes, decodes_from_copy
from sppo_lit.settings import LoraSettings, ModelSource

WEIGHTS = {"bf16-true": torch.bfloat16, "64": torch.float64, "64-true": torch.float64}
"""Data type of the weights by Lightning precision; float32 for all others."""

CUDA_BYTES = 2 * 2**30
"""Held by the CUDA context, cuBLAS and NCCL beside the tensors; not known without a GPU."""

CHECKPOINTS = 4
"""Checkpoints on disk at once: best, previous, last, and the one being written."""


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
        offload_while_sampling: what is moved to CPU memory while responses are sampled.
        gpu_memory: bytes of the GPU; None on a CPU.
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
    offload_while_sampling: Literal["none", "optimizer", "all"] = "none"
    gpu_memory: int | None = None

    @property
    def mixed(self) -> bool:
        """Whether passes are computed in bfloat16 with float32 weights."""
        return self.precision == "bf16-mixed"

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
    """

    weights: int
    trained: int


@dataclass(frozen=True)
class Need:
    """One line of an estimate: bytes held by each process while sampling and while updating.

    Attributes:
        what: the tensors.
        sampling: bytes at the peak while responses are sampled.
        updating: bytes at the peak of an optimizer step.
        how: "reckoned" from sizes; "simulated": what the run's own passes allocate beyond the other lines; "assumed".
        grows: in proportion to `Plan.concurrent`.
    """

    what: str
    sampling: int
    updating: int
    how: Literal["reckoned", "simulated", "assumed"] = "reckoned"
    grows: bool = False


def needs(plan: Plan) -> list[Need]:
    """Peak memory of each process while sampling and while updating.

    Assumes that every sequence is as long as allowed and every micro-batch full.

    Raises:
        InputError: a configuration that cannot be read.
    """
    kinds: list[CriticKind] = ["none"] if plan.critic_kind == "none" else ["none", plan.critic_kind]
    sizes = networks(plan)
    frozen = network(replace(plan, lora=None), plan.reference).weights if plan.reference else 0
    weights, learnable = sum(n.weights for n in sizes), sum(n.trained for n in sizes)

    def shard(size: int) -> int:
        return 0 if plan.cpu_offload else own(size)

    def own(size: int) -> int:
        return -(-size // plan.ranks) if plan.sharded else size

    # Updating: one network at a time, with what the others hold all the while.
    shapes = [_shape(plan, kind) for kind in kinds]
    beyond = [update_bytes(shape) - own(n.weights) - own(3 * n.trained) for shape, n in zip(shapes, sizes, strict=True)]
    largest = max(range(len(sizes)), key=lambda i: shard(sizes[i].trained) + beyond[i])

    # Sampling: first the decode copy is filled, then idle tensors leave, then tokens are decoded.
    filling, decoding = sampling_bytes(shapes[0])
    copy = copy_bytes(plan)
    cache = plan.concurrent * -(-(plan.prompt_tokens + plan.response_tokens) // 16) * 16 * token_bytes(plan)
    moments_idle, weights_idle = plan.offload_while_sampling != "none", plan.offload_while_sampling == "all"
    decodes_with = copy or sizes[0].weights
    kept = 0 if copy else sizes[0].weights  # the policy's own, if it decodes with them
    held = kept + (0 if weights_idle else shard(weights) - kept)
    buckets = learnable if plan.ranks > 1 and not plan.sharded else 0
    moments, reference = shard(2 * learnable), shard(frozen)
    step = decoding - decodes_with - cache
    rows = [
        Need("weights of policy and critic", held, shard(weights)),
        Need("two AdamW moments of each", 0 if moments_idle else moments, moments),
        Need("weights of the reference policy", 0 if weights_idle else reference, reference),
        Need("gradients to be summed by ddp", buckets, buckets),
        Need("copy of the policy for decoding", copy, 0),
        Need("keys and values of the longest sequences", cache, 0, grows=True),
        Need("a decoded token of each sequence, and the growing cache", step, 0, "simulated", grows=True),
        Need("gradients of one network at a time", 0, shard(sizes[largest].trained)),
        Need("activations, logits and gathered layers of a micro-batch", 0, beyond[largest], "simulated"),
    ]
    # While the copy is filled nothing has left yet.
    before = shard(weights) - own(sizes[0].weights) + moments + reference + buckets + filling
    more = max(0, before - sum(row.sampling for row in rows))
    if plan.gpu_memory is not None:
        rows.append(Need("CUDA, its libraries and their buffers", CUDA_BYTES, CUDA_BYTES, "assumed"))
    return [*rows, Need("before that, while the copy is filled: more by", more, 0, "simulated")]


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
    """Sizes of a policy's or a critic's network in this run, from its configuration.

    Raises:
        InputError: a configuration that cannot be read.
    """
    model = skeleton(source, plan.weights, critic)
    if plan.lora is not None:
        with torch.device("meta"):
            add_adapters(model, plan.lora.rank, plan.lora.alpha, plan.lora.targets)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Network(sum(p.numel() * p.element_size() for p in model.parameters()), trained)


def copy_bytes(plan: Plan) -> int:
    """Bytes of the copy of the policy that is decoded with; 0 if it decodes with its own weights."""
    if not decodes_from_copy(plan.weights, plan.mixed, plan.sharded):
        return 0
    model = skeleton(plan.policy, plan.weights, "none")
    kept = decode_dtypes(model, torch.bfloat16, plan.sharded) if plan.mixed else {}
    named = model.named_parameters()
    return sum(p.numel() * kept.get(name, p.dtype).itemsize for name, p in named)


def token_bytes(plan: Plan) -> int:
    """Bytes of one token's keys and values in all layers of the sampler's cache."""
    model = skeleton(plan.policy, plan.weights, "none")
    return cache_bytes(model.config, torch.bfloat16 if plan.mixed else plan.weights)


def _shape(plan: Plan, critic: CriticKind) -> Shape:
    return Shape(
        source=plan.policy if critic == "none" else plan.critic,
        critic=critic,
        weights=plan.weights,
        mixed=plan.mixed,
        ranks=plan.ranks if plan.sharded else 0,
        tokens=plan.micro_batch_tokens,
        prompt=plan.prompt_tokens,
        response=plan.response_tokens,
        concurrent=plan.concurrent,
        gradient_checkpointing=plan.gradient_checkpointing,
        lora=plan.lora,
        gpu_memory=plan.gpu_memory,
    )
