"""Sampler for any `transformers` causal language model: one process, one device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.rollout.attention import attention_for_slots
from sppo_lit.rollout.checks import (
    cache_argument,
    check_inputs,
    check_model,
    check_positions,
    finite,
    takes_logits_to_keep,
    vocabulary,
)
from sppo_lit.rollout.drawing import draw
from sppo_lit.rollout.randomness import uniforms
from sppo_lit.rollout.slot_cache import SlotCache
from sppo_lit.types import Completion, Sampling
from sppo_lit.utils.out_of_memory import free_device_bytes, is_out_of_memory, release_reserve

Progress = Callable[[int, int, int], None]
PREFILL_TOKENS = 16_384  # maximum prompt tokens, padding included, of one forward pass
_EFFICIENT_TOKENS = 512  # above this, a separate forward pass costs less than the padding it avoids
_SECONDS_BETWEEN_REPORTS = 0.1
_CHECK_EVERY = 8  # decoding steps on an accelerator between two looks, which make it wait for the host
_CACHE_SHARE = 0.8  # of free memory; the rest is for logits, activations and growing the cache layer by layer

Partial = tuple[list[int], list[float]]
"""Tokens of a response that has not ended, and their log-probabilities."""


def whole_copy(
    model: PreTrainedModel, device: torch.device, dtypes: Mapping[str, torch.dtype] | None = None
) -> PreTrainedModel:
    """A model of the same architecture, unsharded and without adapters; weights must be synced.

    Args:
        model: the model.
        device: where the copy lies.
        dtypes: dtype of its parameters by name, where it is not that of the model.
    """
    with torch.random.fork_rng(), torch.device("meta"):
        copy: Any = type(model)(model.config)
    buffers, made = dict(model.named_buffers()), {}
    for prefix, module in copy.named_modules():
        path = f"{prefix}." if prefix else ""
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffers[path + key].to(device, copy=True)
        for key, p in module._parameters.items():
            if p is not None and id(p) not in made:
                dtype = (dtypes or {}).get(path + key, model.dtype)
                empty = torch.nn.Parameter(torch.empty(p.shape, dtype=dtype, device=device), requires_grad=False)
                made[id(p)] = p, empty  # the first keeps its id from being given again
            if p is not None:
                module._parameters[key] = made[id(p)][1]
    return copy.eval()


def decode_dtypes(model: PreTrainedModel, dtype: torch.dtype, sharded: bool) -> dict[str, torch.dtype]:
    """The parameters of a `decode_copy` that are converted, by name.

    A sharded policy gathers all its weights in `dtype`; otherwise autocast converts those of linear layers alone, and
    these alone are converted here. (A head that is tied to the embedding stays as it is.)
    """
    with torch.random.fork_rng(), torch.device("meta"):
        names: Any = type(model)(model.config)
    kept: set[int] = set()
    if not sharded:
        linear = [module for module in names.modules() if isinstance(module, torch.nn.Linear)]
        kept = {id(p) for p in names.parameters()} - {id(p) for module in linear for p in module.parameters()}
        kept |= {id(p) for p in names.get_input_embeddings().parameters()}
    return {name: dtype for name, p in names.named_parameters(remove_duplicate=False) if id(p) not in kept}


def decodes_from_copy(weights: torch.dtype, converts: bool, sharded: bool) -> bool:
    """Whether a policy is decoded from a copy of its own.

    Args:
        weights: dtype of its weights.
        converts: autocast is on, which without a cache converts every weight at every decoded token: the copy's are
            converted once.
        sharded: no rank has all of it.
    """
    return sharded or (converts and weights == torch.float32)


def decode_copy(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None, sharded: bool
) -> PreTrainedModel:
    """A `whole_copy` that computes what the policy's own passes compute, without converting weights at every token.

    Adapters are merged into it: with them it is equal up to the rounding of the sum.

    Args:
        model: the policy's model.
        device: where the copy lies.
        dtype: autocast's; None for no autocast.
        sharded: whether the model is.
    """
    return whole_copy(model, device, None if dtype is None else decode_dtypes(model, dtype, sharded))


class TorchEngine:
    """Decodes with the given model object itself, so that a policy passed in needs no weight transfer.

    Every sequence has its own random numbers, hence samples depend neither on `max_concurrent` nor on the order of the
    prompts (except for rounding in the logits). Autocast and device placement are the caller's.

    Args:
        model: a causal language model with full attention (or a sliding window that is never exceeded).
        eos_ids: a response ends with any of these tokens; may be empty.
        pad_id: id that pads short prompts; masked in attention.
        max_concurrent: most sequences decoded at a time; halved for the rest of the run when CUDA memory runs out.
        shares_weights: the policy is trained on `model` itself; False if it is a copy.
        check_every: decoding steps between two looks at which responses have ended, up to which they are decoded on
            for nothing; None looks after each on a CPU, and after every 8 elsewhere, where a look stops the device.

    Attributes:
        concurrent: most sequences decoded at a time in the next call, at most `max_concurrent`.
        deterministic: True; a response depends only on its key and the weights, except for rounding in the logits.
        exact: True; it decodes in the precision of the run.

    Raises:
        InputError: unsupported model, or an id outside its vocabulary.
    """

    deterministic = True
    exact = True

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        pad_id: int,
        max_concurrent: int = 256,
        shares_weights: bool = True,
        check_every: int | None = None,
    ) -> None:
        if max_concurrent < 1:
            raise InputError(f"max_concurrent is {max_concurrent}: set it to 1 or more")
        check_model(model, [*eos_ids, pad_id])
        self.model = model
        self.eos_ids = list(eos_ids)
        self.pad_id = pad_id
        self.max_concurrent = self.concurrent = max_concurrent
        self.shares_weights = shares_weights
        self.check_every = check_every or (1 if model.device.type == "cpu" else _CHECK_EVERY)

    def affordable(self, tokens: int, leaving: int = 0) -> int:
        """Most sequences of so many tokens whose keys and values fit into free memory, at most `max_concurrent`.

        Args:
            tokens: of one sequence, prompt and response.
            leaving: bytes that will be freed before the first token is decoded.
        """
        free = free_device_bytes(self.model.device)
        if free is None:
            return self.max_concurrent
        kind = self.model.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.model.dtype
        fitting = int(_CACHE_SHARE * (free + leaving)) // (max(1, tokens) * cache_bytes(self.model.config, dtype))
        return max(1, min(self.max_concurrent, fitting))

    def sleep(self) -> None:
        """No-op: between calls of `generate` only the weights are held."""

    def wake(self) -> None:
        """No-op."""

    def close(self) -> None:
        """No-op: memory is freed with this object."""

    def free_weights(self) -> None:
        """Free the copy of the weights, if it is one, until they are synced again."""
        if not self.shares_weights:
            for parameter in self.model.parameters():
                parameter.untyped_storage().resize_(0)

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the policy's weights into this engine's model; tensors that it already shares are skipped.

        Raises:
            InputError: an unknown name, a different shape, or a missing parameter.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        for parameter in self.model.parameters():
            if not parameter.untyped_storage().nbytes():
                parameter.untyped_storage().resize_(parameter.numel() * parameter.element_size())
        missing = {parameter.data_ptr(): name for name, parameter in self.model.named_parameters()}
        with torch.no_grad():
            for name, tensor in named_tensors:
                target = own.get(name)
                if target is None or target.shape != tensor.shape:
                    expected = "no such tensor" if target is None else f"shape {tuple(target.shape)}"
                    raise InputError(f"weight {name} {tuple(tensor.shape)}: the rollout model has {expected}")
                missing.pop(target.data_ptr(), None)
                if target.data_ptr() != tensor.data_ptr():
                    target.copy_(tensor)
        if missing:
            raise InputError(f"weights left out of the transfer to the rollout model: {', '.join(missing.values())}")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keys: Sequence[int] | None = None,
        max_new_tokens: Sequence[int] | None = None,
        on_progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in the order of `prompts`; see `RolloutEngine.generate`.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, a limit below 1, sampling without keys, or
                more tokens than the model has positions for.
            FloatingPointError: the model's logits are not finite.
        """
        limits = [sampling.max_new_tokens] * len(prompts) if max_new_tokens is None else list(max_new_tokens)
        positions, limited = check_positions(self.model)
        check_inputs(vocabulary(self.model), positions, prompts, limits, sampling, keys, limited)
        results: list[Completion | None] = [None] * len(prompts)
        partial: dict[int, Partial] = {}
        # Longest first: the last ones are short, and prompts prefilled together have similar lengths.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - limits[i])
        with _decoding(self.model):
            while True:
                waiting = [i for i in order if results[i] is None]
                if not waiting:
                    return [done for done in results if done is not None]
                decoder = None
                try:
                    decoder = _Decoder(self, prompts, limits, sampling, keys, results, partial, waiting, on_progress)
                    decoder.run()
                    continue
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.concurrent == 1:
                        raise
                # Outside the except block, whose traceback keeps the cache alive. Sampling begun responses anew would
                # favour short ones, which had ended by now.
                if decoder is not None:
                    decoder.keep()
                decoder = None
                self.max_concurrent = self.concurrent = self.concurrent // 2
                release_reserve()
                warnings.warn(
                    f"out of GPU memory while sampling: continuing with max_concurrent={self.max_concurrent}",
                    stacklevel=2,
                )


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token in all layers.

    Args:
        config: the model's configuration.
        dtype: of the forward pass.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients, and attention for slots; both are restored afterwards."""
    training = [module for module in model.modules() if module.training]
    attention = model.config._attn_implementation
    ours = attention_for_slots(model)
    if attention != ours:
        model.set_attn_implementation(ours)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        if attention != ours:
            model.set_attn_implementation(attention)


class _Decoder:
    """One pass over the waiting prompts. Slot r of the cache belongs to column r of `state`; the first n are active."""

    def __init__(
        self,
        engine: TorchEngine,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sampling: Sampling,
        keys: Sequence[int] | None,
        results: list[Completion | None],
        partial: dict[int, Partial],
        waiting: list[int],
        on_progress: Progress | None,
    ):
        self.model, self.pad_id, self.eos_ids = engine.model, engine.pad_id, set(engine.eos_ids)
        self.prompts, self.limits, self.sampling, self.keys = prompts, limits, sampling, keys
        self.results, self.partial, self.waiting, self.next = results, partial, waiting, 0
        self.check_every, self.steps = engine.check_every, 0
        self.on_progress, self.last_report = on_progress, time.monotonic()
        self.device = engine.model.device
        self.slots = min(engine.concurrent, len(waiting))
        self.width = max(limits[i] for i in waiting)
        bound = max(len(prompts[i]) + limits[i] - 1 for i in waiting)
        self.cache = SlotCache(bound, engine.model.dtype, self.device)
        self.with_cache = {cache_argument(engine.model): self.cache}
        self.n = self.columns = 0
        self.is_eos = torch.zeros(vocabulary(engine.model), dtype=torch.bool, device=self.device)
        self.is_eos[engine.eos_ids] = True
        # Rows of `state`: last token, its position, next cell of the tables below to fill, end of the cells.
        self.state = torch.zeros((4, self.slots), dtype=torch.int64, device=self.device)
        self.running = torch.zeros(self.slots, dtype=torch.bool, device=self.device)  # slots that have not ended
        # A sequence keeps its row of these tables while it moves between slots.
        self.free = list(range(self.slots))
        self.owner = [0] * self.slots
        # The last row takes what is decoded of sequences that have ended.
        self.spare = self.slots * self.width
        self.tokens = torch.zeros((self.slots + 1, self.width), dtype=torch.int64, device=self.device)
        self.logprobs = torch.zeros(self.tokens.shape, dtype=torch.float32, device=self.device)
        double = torch.float32 if self.device.type == "mps" else torch.float64
        self.uniforms = None if sampling.greedy else torch.zeros(self.tokens.shape, dtype=double, device=self.device)
        self.prefill_options = {"logits_to_keep": 1} if takes_logits_to_keep(engine.model) else {}
        self.sampled = sum(len(done.response_ids) for done in results if done is not None)
        self.sampled += sum(len(partial[i][0]) for i in waiting if i in partial)
        self.drawn = torch.full((), self.sampled, device=self.device)  # `sampled`, on the device

    def run(self) -> None:
        refill_at = max(1, self.slots // 8)
        while True:
            if self.next < len(self.waiting) and (self.n == 0 or self.slots - self.n >= refill_at):
                self.admit()
            if self.n == 0:
                self.report(force=True)
                return
            self.step()
            self.steps += 1
            if self.steps % self.check_every == 0:
                self.look()
            self.report()

    def admit(self) -> None:
        """Prefill free slots with the next prompts, except their last token, which the first decoding step reads."""
        used, chosen = self.n, self.waiting[self.next : self.next + self.slots - self.n]
        self.next += len(chosen)
        records = [self.free.pop() for _ in chosen]
        slots_of: dict[tuple[int, ...], list[int]] = {}  # the samples of one prompt share its prefill
        rows = []
        for slot, (i, record) in enumerate(zip(chosen, records, strict=True), start=used):
            self.owner[record] = i
            ids, logprobs = self.partial.get(i, ([], []))
            *head, last = [*self.prompts[i], *ids]
            slots_of.setdefault(tuple(head), []).append(slot)
            cell = record * self.width
            rows.append((last, len(head), cell + len(ids), cell + self.limits[i]))
            if ids:
                self.tokens[record, : len(ids)] = torch.tensor(ids, device=self.device)
                self.logprobs[record, : len(ids)] = torch.tensor(logprobs, device=self.device)
        self.state[:, used : used + len(chosen)] = torch.tensor(rows, device=self.device).T
        self.running[used : used + len(chosen)] = True
        self.n += len(chosen)
        if self.uniforms is not None and self.keys is not None:
            numbers = torch.from_numpy(uniforms([self.keys[i] for i in chosen], self.width))
            self.uniforms[records] = numbers.to(self.uniforms)
        self.columns = max(self.columns, *map(len, slots_of))
        for heads in _batches(sorted(slots_of, key=len, reverse=True)):
            self.prefill(heads, [slots_of[head] for head in heads], used)

    def prefill(self, heads: list[tuple[int, ...]], slots: list[list[int]], used: int) -> None:
        """Run the model over prompts, the longest first, and store the keys and values of each in its slots."""
        columns = len(heads[0])
        source = torch.tensor([u for u, copies in enumerate(slots) for _ in copies], device=self.device)
        targets = torch.tensor([slot for copies in slots for slot in copies], device=self.device)
        self.cache.begin_prefill(self.slots, used, targets, source, self.state[1, targets], columns)
        if columns:
            padded = [[*head, *[self.pad_id] * (columns - len(head))] for head in heads]
            self.model(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=self.cache.attention_mask,
                position_ids=torch.arange(columns, device=self.device).expand(len(heads), -1),
                use_cache=True,
                **self.with_cache,
                **self.prefill_options,
            )

    def step(self) -> None:
        """Decode one token of every active sequence; those that have ended since the last `look` change nothing."""
        token, position, cell, end = self.state[:, : self.n].unbind()
        running = self.running[: self.n]
        self.columns = min(self.columns + 1, self.cache.bound)
        # When no prompt is waiting, allocate only for the active sequences.
        slots = self.n if self.next == len(self.waiting) else self.slots
        read = position.clamp(max=self.cache.bound - 1)
        self.cache.begin_decode(slots, read, self.columns)
        logits = self.model(
            input_ids=token[:, None],
            attention_mask=self.cache.attention_mask,
            position_ids=read[:, None],
            use_cache=True,
            **self.with_cache,
        ).logits[:, -1]
        target = torch.where(running, cell, self.spare)
        u = None if self.uniforms is None else self.uniforms.view(-1)[target]
        drawn, logprobs = draw(logits, u, self.sampling)
        last = torch.where(running, drawn, token)
        going_on = running & ~(self.is_eos[drawn] | (cell + 1 == end))
        self.tokens.view(-1)[target] = drawn
        self.logprobs.view(-1)[target] = logprobs
        token.copy_(last)
        self.state[1:3, : self.n] += running
        self.drawn += running.sum()
        running.copy_(going_on)

    def look(self) -> None:
        """Record the responses that have ended; the only place where the host waits for the device."""
        done = (~self.running[: self.n]).nonzero()[:, 0].tolist()
        self.sampled = int(self.drawn)
        if done:
            self.finish(done)

    def finish(self, done: list[int]) -> None:
        """Record the completions of slots `done`, and fill these slots with the last active sequences."""
        for record, ids, logprobs in self.responses(done):
            self.results[self.owner[record]] = Completion(ids, finite(logprobs), finished=ids[-1] in self.eos_ids)
            self.free.append(record)
        gone = set(done)
        kept = self.n - len(done)
        holes = [slot for slot in done if slot < kept]
        movers = [slot for slot in range(kept, self.n) if slot not in gone]
        if holes:
            origins, targets = torch.tensor([movers, holes], device=self.device)
            self.cache.move(origins, targets)
            self.state[:, targets] = self.state[:, origins]
        self.running[:kept] = True
        self.n = kept
        self.columns = int(self.state[1, :kept].max()) if kept else 0

    def responses(self, slots: list[int]) -> Iterator[tuple[int, list[int], list[float]]]:
        """Record, tokens and log-probabilities of the responses in some slots."""
        _, _, cells, ends = self.state[:, slots].tolist()
        for cell, end in zip(cells, ends, strict=True):
            record = (end - 1) // self.width
            length = cell - record * self.width
            yield record, self.tokens[record, :length].tolist(), self.logprobs[record, :length].tolist()

    def keep(self) -> None:
        """After memory ran out: keep what has been sampled of the active responses."""
        ended = (~self.running[: self.n]).tolist()
        for done, (record, ids, logprobs) in zip(ended, self.responses(list(range(self.n))), strict=True):
            i = self.owner[record]
            if self.results[i] is None and done:
                self.results[i] = Completion(ids, finite(logprobs), finished=ids[-1] in self.eos_ids)
            elif self.results[i] is None:
                self.partial[i] = (ids, logprobs)

    def report(self, force: bool = False) -> None:
        if self.on_progress is None or not (force or time.monotonic() - self.last_report > _SECONDS_BETWEEN_REPORTS):
            return
        self.last_report = time.monotonic()
        finished = len(self.results) - (len(self.waiting) - self.next) - self.n
        self.on_progress(finished, len(self.results), self.sampled)


def _batches(heads: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Cut prompts, sorted by length, into forward passes of bounded size and with little padding."""
    batch: list[tuple[int, ...]] = []
    for head in heads:
        tokens = len(batch) * len(batch[0]) if batch else 0
        shrunk = bool(batch) and tokens >= _EFFICIENT_TOKENS and len(head) < 0.8 * len(batch[0])
        if batch and (shrunk or tokens + len(batch[0]) > PREFILL_TOKENS):
            yield batch
            batch = []
        batch.append(head)
    yield batch
