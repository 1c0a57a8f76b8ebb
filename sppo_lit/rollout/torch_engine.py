"""Sampler for any `transformers` causal language model: one process, one device, no extra copy of the weights."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.rollout.attention import attention_for_slots
from sppo_lit.rollout.checks import check_inputs, check_model, takes_logits_to_keep, vocabulary
from sppo_lit.rollout.drawing import draw
from sppo_lit.rollout.randomness import uniforms
from sppo_lit.rollout.slot_cache import SlotCache
from sppo_lit.types import Completion, Sampling

Progress = Callable[[int, int, int], None]
_PREFILL_TOKENS = 16_384  # maximum prompt tokens, padding included, of one forward pass
_EFFICIENT_TOKENS = 512  # above this, a separate forward pass costs less than the padding it avoids
_SECONDS_BETWEEN_REPORTS = 0.1


def whole_copy(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model of the same architecture and precision, unsharded and without adapters; weights must be synced."""
    with torch.random.fork_rng(), torch.device(device):
        copy: Any = type(model)(model.config)
    return copy.to(model.dtype).requires_grad_(False).eval()


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

    Attributes:
        deterministic: True; a response depends only on its key and the weights, except for rounding in the logits.

    Raises:
        InputError: unsupported model, or an id outside its vocabulary.
    """

    deterministic = True

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        pad_id: int,
        max_concurrent: int = 256,
        shares_weights: bool = True,
    ) -> None:
        if max_concurrent < 1:
            raise InputError(f"max_concurrent is {max_concurrent}: set it to 1 or more")
        check_model(model, [*eos_ids, pad_id])
        self.model = model
        self.eos_ids = list(eos_ids)
        self.pad_id = pad_id
        self.max_concurrent = max_concurrent
        self.shares_weights = shares_weights

    def sleep(self) -> None:
        """No-op: between calls of `generate` only the weights are held."""

    def wake(self) -> None:
        """No-op."""

    def close(self) -> None:
        """No-op: memory is freed with this object."""

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the policy's weights into this engine's model; tensors that it already shares are skipped.

        Raises:
            InputError: an unknown name, a different shape, or a missing parameter.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
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
        check_inputs(self.model, prompts, limits, sampling, keys)
        results: list[Completion | None] = [None] * len(prompts)
        # Longest first: the last ones are short, and prompts prefilled together have similar lengths.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - limits[i])
        with _decoding(self.model):
            while True:
                waiting = [i for i in order if results[i] is None]
                if not waiting:
                    return [done for done in results if done is not None]
                try:
                    _Decoder(self, prompts, limits, sampling, keys, results, waiting, on_progress).run()
                    continue
                except torch.OutOfMemoryError:
                    if self.max_concurrent == 1:
                        raise
                # Outside the except block, whose traceback keeps the cache alive.
                self.max_concurrent //= 2
                torch.cuda.empty_cache()
                warnings.warn(
                    f"out of GPU memory while sampling: continuing with max_concurrent={self.max_concurrent}",
                    stacklevel=2,
                )


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
        waiting: list[int],
        on_progress: Progress | None,
    ):
        self.model, self.pad_id, self.eos_ids = engine.model, engine.pad_id, set(engine.eos_ids)
        self.prompts, self.limits, self.sampling, self.keys = prompts, limits, sampling, keys
        self.results, self.waiting, self.next = results, waiting, 0
        self.on_progress, self.last_report = on_progress, time.monotonic()
        self.device = engine.model.device
        self.slots = min(engine.max_concurrent, len(waiting))
        self.width = max(limits[i] for i in waiting)
        bound = max(len(prompts[i]) + limits[i] - 1 for i in waiting)
        self.cache = SlotCache(bound, engine.model.dtype, self.device)
        self.n = self.columns = 0
        self.is_eos = torch.zeros(vocabulary(engine.model), dtype=torch.bool, device=self.device)
        self.is_eos[engine.eos_ids] = True
        # Rows of `state`: last token, its position, next cell of the tables below to fill, end of the cells.
        self.state = torch.zeros((4, self.slots), dtype=torch.int64, device=self.device)
        # A sequence keeps its row of these tables while it moves between slots.
        self.free = list(range(self.slots))
        self.owner = [0] * self.slots
        self.tokens = torch.zeros((self.slots, self.width), dtype=torch.int64, device=self.device)
        self.logprobs = torch.zeros((self.slots, self.width), dtype=torch.float32, device=self.device)
        double = torch.float32 if self.device.type == "mps" else torch.float64
        self.uniforms = None if sampling.greedy else torch.zeros(self.tokens.shape, dtype=double, device=self.device)
        self.prefill_options = {"logits_to_keep": 1} if takes_logits_to_keep(engine.model) else {}
        self.sampled = sum(len(done.response_ids) for done in results if done is not None)

    def run(self) -> None:
        refill_at = max(1, self.slots // 8)
        while True:
            if self.next < len(self.waiting) and (self.n == 0 or self.slots - self.n >= refill_at):
                self.admit()
            if self.n == 0:
                self.report(force=True)
                return
            self.step()
            self.report()

    def admit(self) -> None:
        """Prefill free slots with the next prompts, except their last token, which the first decoding step reads."""
        used, chosen = self.n, self.waiting[self.next : self.next + self.slots - self.n]
        self.next += len(chosen)
        self.n += len(chosen)
        records = [self.free.pop() for _ in chosen]
        slots_of: dict[tuple[int, ...], list[int]] = {}  # the samples of one prompt share its prefill
        rows = []
        for slot, (i, record) in enumerate(zip(chosen, records, strict=True), start=used):
            self.owner[record] = i
            *head, last = self.prompts[i]
            slots_of.setdefault(tuple(head), []).append(slot)
            cell = record * self.width
            rows.append((last, len(head), cell, cell + self.limits[i]))
        self.state[:, used : self.n] = torch.tensor(rows, device=self.device).T
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
                past_key_values=self.cache,
                use_cache=True,
                **self.prefill_options,
            )

    def step(self) -> None:
        """Decode one token of every active sequence."""
        token, position, cell, end = self.state[:, : self.n].unbind()
        self.columns += 1
        # When no prompt is waiting, allocate only for the active sequences.
        slots = self.n if self.next == len(self.waiting) else self.slots
        self.cache.begin_decode(slots, position, self.columns)
        logits = self.model(
            input_ids=token[:, None],
            attention_mask=self.cache.attention_mask,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        u = None if self.uniforms is None else self.uniforms.view(-1)[cell]
        drawn, logprobs = draw(logits, u, self.sampling)
        self.tokens.view(-1)[cell] = drawn
        self.logprobs.view(-1)[cell] = logprobs
        token.copy_(drawn)
        self.state[1:3, : self.n] += 1
        self.sampled += self.n
        ended = self.is_eos[drawn] | (cell == end)
        done = ended.nonzero()[:, 0].tolist()
        if done:
            self.finish(done)

    def finish(self, done: list[int]) -> None:
        """Record the completions of slots `done`, and fill these slots with the last active sequences."""
        last, _, cells, _ = self.state[:, done].tolist()
        for token, cell in zip(last, cells, strict=True):
            record, length = divmod(cell - 1, self.width)
            self.results[self.owner[record]] = Completion(
                response_ids=self.tokens[record, : length + 1].tolist(),
                logprobs=_finite(self.logprobs[record, : length + 1].tolist()),
                finished=token in self.eos_ids,
            )
            self.free.append(record)
        gone = set(done)
        kept = self.n - len(done)
        holes = [slot for slot in done if slot < kept]
        movers = [slot for slot in range(kept, self.n) if slot not in gone]
        if holes:
            origins, targets = torch.tensor([movers, holes], device=self.device)
            self.cache.move(origins, targets)
            self.state[:, targets] = self.state[:, origins]
        self.n = kept
        self.columns = int(self.state[1, :kept].max()) if kept else 0

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
        if batch and (shrunk or tokens + len(batch[0]) > _PREFILL_TOKENS):
            yield batch
            batch = []
        batch.append(head)
    yield batch


def _finite(logprobs: list[float]) -> list[float]:
    if not math.isfinite(sum(logprobs)):
        raise FloatingPointError("the policy's logits are not finite: lower the learning rate or clip gradients")
    return logprobs
