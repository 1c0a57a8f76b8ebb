"""Peak memory of a run, by running its own passes on tensors without contents: no weights, no GPU, no other ranks.

Under torch's `FakeTensorMode` operators compute shapes alone, and a fake process group answers collectives at once, so
that sharding, the update and a decoding step of the real configuration take seconds; `StorageTracker` counts what they
allocate. A network of many layers is run with `FEW` and `MORE` of them: memory grows by the same amount with each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.distributed.sharding import is_sharded, shard, whole_parameters
from sppo_lit.doctor.tracking import StorageTracker
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.loading import checkpoint_layers, skeleton
from sppo_lit.models.lora import add_adapters
from sppo_lit.models.policy import Policy, logits_per_chunk
from sppo_lit.rollout.attention import attention_for_slots
from sppo_lit.rollout.checks import cache_argument, takes_logits_to_keep
from sppo_lit.rollout.drawing import draw
from sppo_lit.rollout.slot_cache import SlotCache
from sppo_lit.rollout.torch_engine import PREFILL_TOKENS, decode_copy, decodes_from_copy
from sppo_lit.settings import LoraSettings, ModelSource, OptimizerSettings
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.runtime import Network, Runtime
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.updater import Terms, Updater, adamw
from sppo_lit.types import Sampling

FEW, MORE = 3, 5
"""Numbers of layers to extrapolate from: sharding holds up to three at once."""

CAUSAL = "sppo_causal"
CriticKind = Literal["none", "scalar", "token"]


@dataclass(frozen=True)
class Shape:
    """What determines the memory of a network's passes.

    Attributes:
        source: where its configuration comes from.
        critic: kind of critic; "none" for the policy.
        weights: dtype of the weights.
        mixed: passes are computed in bfloat16.
        ranks: number of processes that share a sharded network; 0 if it is not sharded.
        tokens: most tokens of one forward pass with gradient.
        prompt: longest prompt in tokens.
        response: longest response in tokens.
        concurrent: sequences decoded at once.
        gradient_checkpointing: each layer's activations are recomputed in the backward pass.
        lora: adapters trained instead of the policy's weights.
        gpu_memory: bytes of the GPU; None on a CPU.
    """

    source: ModelSource
    critic: CriticKind
    weights: torch.dtype
    mixed: bool
    ranks: int
    tokens: int
    prompt: int
    response: int
    concurrent: int
    gradient_checkpointing: bool
    lora: LoraSettings | None
    gpu_memory: int | None

    @property
    def micro_batch(self) -> tuple[int, int, int]:
        """Rows, prompt and response tokens of a full micro-batch whose tokens are of responses, as far as they may."""
        longest = self.prompt + (0 if self.critic == "scalar" else self.response)
        tokens = max(self.tokens, longest)
        rows = -(-tokens // longest)
        length = tokens // rows
        response = 0 if self.critic == "scalar" else min(self.response, length - 1)
        return rows, length - response, response


@cache  # advice asks for the same passes again
def update_bytes(shape: Shape) -> int:
    """Peak of an optimizer step of one network: its weights, moments, gradients and passes, and nothing else.

    Raises:
        InputError: a configuration that cannot be read.
    """
    return _extrapolated(shape, lambda layers: [_update(shape, layers)])[0]


@cache
def sampling_bytes(shape: Shape) -> tuple[int, int]:
    """Peaks while the decode copy is filled, policy included, and while the last tokens are decoded, without it.

    Raises:
        InputError: a configuration that cannot be read.
    """
    filling, decoding = _extrapolated(shape, lambda layers: _sampling(shape, layers))
    return filling, decoding


def _extrapolated(shape: Shape, peaks: Callable[[int], list[int]]) -> list[int]:
    total = int(skeleton(shape.source, shape.weights, shape.critic).config.num_hidden_layers)
    if total <= MORE:
        return peaks(total)
    return [
        few + (more - few) * (total - FEW) // (MORE - FEW) for few, more in zip(peaks(FEW), peaks(MORE), strict=True)
    ]


def _update(shape: Shape, layers: int) -> int:
    with _fake(shape) as mesh:
        network = _network(shape, layers, mesh)
        optimizer = adamw(network, OptimizerSettings())
        if shape.gpu_memory is not None:
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        rows, prompt, response = shape.micro_batch
        tracker = StorageTracker()
        with _Answers(max(prompt + response, 1)), tracker:
            tracker.add(network.parameters())
            loss = partial(_loss, shape, network, rows, prompt, response)
            updater = Updater(
                "policy",
                network,
                optimizer,
                OptimizerSettings(),
                TokenBudget(shape.tokens),
                _runtime(shape),
                cast(StopControl, _Alone()),
                Path(),
            )
            lengths = torch.full((rows,), prompt + response)
            for name, passes in (("first", 1), ("steady", 2)):  # the first step makes the moments
                with tracker.phase(name):
                    updater.step([torch.arange(rows)] * passes, lengths, loss, ("policy/loss",), lambda rows: {})
        return tracker.peaks["steady"]


def _loss(shape: Shape, network: Network, rows: int, prompt: int, response: int, chosen: Tensor) -> Terms:
    """The policy's loss, or the critic's, on a micro-batch of sequences of the greatest length."""
    prompts = (torch.zeros((rows, prompt), dtype=torch.int64), torch.full((rows,), prompt))
    responses = (torch.zeros((rows, max(response, 1)), dtype=torch.int64), torch.full((rows,), max(response, 1)))
    with _autocast(shape):
        if isinstance(network, Policy):
            logprobs = network(*prompts, *responses, 1.0).logprobs
            mask = torch.ones(logprobs.shape, dtype=torch.bool)
            surrogate = ALGORITHMS["sppo"].policy_loss(
                logprobs,
                torch.zeros(logprobs.shape),
                torch.zeros(rows),
                mask,
                clip_low=0.2,
                clip_high=0.2,
                dual_clip=3.0,
            )
            return {"policy/loss": surrogate.loss.sum()}
        values = network(*prompts) if isinstance(network, ScalarCritic) else network(*prompts, *responses)
        loss = ALGORITHMS["sppo" if shape.critic == "scalar" else "ppo"].critic_loss
        assert loss is not None
        return {"policy/loss": loss(values, torch.zeros(values.shape), torch.zeros(values.shape), 0.5).sum()}


def _sampling(shape: Shape, layers: int) -> list[int]:
    """Fill the decode copy, prefill, and decode where the cache grows for the last time."""
    with _fake(shape) as mesh, torch.no_grad():
        policy = _network(shape, layers, mesh)
        sharded = is_sharded(policy)
        compute = torch.bfloat16 if shape.mixed and sharded else None
        for _ in whole_parameters(policy.model, compute):
            pass  # DTensor plans each operator once, with whole tensors that no run allocates: not to be counted below
        tracker = StorageTracker()
        with _Answers(1), tracker:
            tracker.add(policy.parameters())
            model = policy.model
            with tracker.phase("filling"):
                if decodes_from_copy(shape.weights, shape.mixed, sharded):
                    model = decode_copy(model, torch.device("cpu"), torch.bfloat16 if shape.mixed else None, sharded)
                    for name, value in whole_parameters(policy.model, compute):
                        model.get_parameter(name).copy_(value)
                        del value
            if model is not policy.model:
                for parameter in policy.parameters():
                    local = parameter._local_tensor if isinstance(parameter, DTensor) else parameter
                    local.untyped_storage().resize_(0)
            with tracker.phase("decoding"), _autocast(shape):
                _decode(shape, model)
        return [tracker.peaks["filling"], tracker.peaks["decoding"]]


def _decode(shape: Shape, model: PreTrainedModel) -> None:
    model.set_attn_implementation(attention_for_slots(model))
    model.eval()
    slots, bound = shape.concurrent, shape.prompt + shape.response
    cache = SlotCache(bound, model.dtype, torch.device("cpu"))
    rows = min(slots, max(1, PREFILL_TOKENS // shape.prompt))
    at = torch.arange(rows)
    cache.begin_prefill(slots, 0, at, at, torch.full((rows,), shape.prompt), shape.prompt)
    ids = torch.zeros((rows, shape.prompt), dtype=torch.int64)
    last: dict[str, Any] = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    given: dict[str, Any] = {cache_argument(model): cache}
    model(input_ids=ids, attention_mask=cache.attention_mask, use_cache=True, **given, **last)
    for columns in (max(shape.prompt + 1, bound * 8 // 9), bound):
        positions = torch.full((slots,), columns - 1)
        cache.begin_decode(slots, positions, columns)
        logits = model(
            input_ids=torch.zeros((slots, 1), dtype=torch.int64),
            attention_mask=cache.attention_mask,
            position_ids=positions[:, None],
            use_cache=True,
            **given,
        ).logits[:, -1]
        draw(logits, torch.zeros(slots, dtype=torch.float64), Sampling())


def _network(shape: Shape, layers: int, mesh: DeviceMesh | None) -> Network:
    """A network of fake tensors, sharded over the fake ranks."""
    model = skeleton(shape.source, shape.weights, shape.critic, layers)
    if shape.lora is not None and shape.critic == "none":
        with torch.device("meta"):
            add_adapters(model, shape.lora.rank, shape.lora.alpha, shape.lora.targets)
    network: Network = (
        Policy(model)
        if shape.critic == "none"
        else ScalarCritic(model)
        if shape.critic == "scalar"
        else TokenCritic(model)
    )
    if isinstance(network, Policy):
        network.logits_per_chunk = logits_per_chunk(shape.gpu_memory)
    to_fake_tensors(model)
    model.config.use_cache = False
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(CAUSAL)
    if shape.gradient_checkpointing:
        checkpoint_layers(model)
    if mesh is not None:
        shard(network, mesh, compute=torch.bfloat16 if shape.mixed else None)
    return network


@contextmanager
def _fake(shape: Shape) -> Iterator[DeviceMesh | None]:
    """Fake tensors, and where the network is sharded a process group that answers at once."""
    import torch.distributed._tools.fake_collectives  # noqa: F401 - what collectives return for fake tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore

    mesh = None
    if shape.ranks:
        dist.init_process_group("fake", rank=0, world_size=shape.ranks, store=FakeStore())
        mesh = init_device_mesh("cpu", (shape.ranks,))  # outside fake mode: it computes with its ranks
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            yield mesh
    finally:
        if mesh is not None:
            dist.destroy_process_group()


class _Answers(TorchDispatchMode):
    """What tensors without contents cannot say: every sequence is as long as allowed, and everything is finite."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest = longest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        if func is torch.ops.aten.nonzero.default:
            return torch.empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else self.longest
        if func is torch.ops.aten._fused_adamw_.default:
            return None  # in place; as fake tensors it is taken apart into copies
        return func(*args, **(kwargs or {}))


class _Alone:
    """Stands for the other ranks."""

    def meet(self, flag: bool = False) -> bool:
        return flag


class _Ranks(Runtime):
    def join_passes(self, network: nn.Module, passes: int) -> None:
        """All ranks take as many."""


def _runtime(shape: Shape) -> Runtime:
    compute = torch.bfloat16 if shape.mixed else None
    return _Ranks(
        device=torch.device("cpu"),
        rank=0,
        ranks=max(1, shape.ranks),
        compute=compute,
        autocast=partial(_autocast, shape),
        backward=lambda loss: loss.backward(),
        local_gradients=nullcontext,
    )


def _autocast(shape: Shape) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=shape.mixed, cache_enabled=False)


def _causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of a real pass without padding; on fake tensors transformers would add a mask."""
    return sdpa_attention_forward(module, query, key, value, None, **{**options, "is_causal": True})


AttentionInterface.register(CAUSAL, _causal_attention)


def to_fake_tensors(model: nn.Module) -> None:
    """Replace meta tensors by fake tensors, which have a device; tied ones stay tied. Within `FakeTensorMode`."""
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
