"""Responses of the current policy, sampled by the rollout engine and judged by the verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sppo_lit.distributed.collectives import reduced
from sppo_lit.distributed.host_memory import held_bytes, on_host
from sppo_lit.distributed.sharding import is_sharded, whole_parameters
from sppo_lit.models.loading import eos_token_ids
from sppo_lit.models.policy import Policy
from sppo_lit.rollout.engines import make_engine
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.settings import RolloutSettings
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import (
    BoundedEngine,
    Completion,
    Encoded,
    FreesWeights,
    RolloutEngine,
    Sampling,
    Scored,
    Verdict,
    Verifier,
)


class Sampler:
    """Samples responses and has them judged.

    Args:
        policy: the policy that is sampled.
        tokenizer: decodes responses.
        verifier: judges responses.
        settings: settings of the engine.
        seed: part of the key of every response's random numbers.
        runtime: runtime of this rank.
        timer: receives the progress of judging.
        idle: returns the tensors that are kept in the host's memory while sampling.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        verifier: Verifier,
        settings: RolloutSettings,
        seed: int,
        runtime: Runtime,
        timer: PhaseTimer,
        idle: Callable[[], Sequence[Tensor]] = list,
    ) -> None:
        self._policy, self._tokenizer, self._verifier = policy, tokenizer, verifier
        self._settings, self._seed, self._runtime, self._timer = settings, seed, runtime, timer
        self._idle = idle
        self._engine: RolloutEngine | None = None
        self._synced: int | None = None  # iteration whose weights the engine has
        self._fewest = settings.max_concurrent  # sequences decoded at a time, so far

    def engine(self, iteration: int) -> RolloutEngine:
        """The engine with the weights after `iteration` iterations; created at first use.

        An engine with its own weights is synced once per iteration, or before every sampling if it frees them between,
        which is collective under sharding; sampling itself needs no other rank.
        """
        model = self._policy.model
        if self._engine is None:
            ends, pad = eos_token_ids(model, self._tokenizer), int(self._tokenizer.pad_token_id)  # type: ignore[arg-type]
            with self._runtime.autocast():
                self._engine = make_engine(self._settings, model, ends, pad, self._runtime.device, is_sharded(model))
        if self._synced != iteration:
            if not self._engine.shares_weights:
                self._engine.sync_weights(whole_parameters(model, self._runtime.compute if is_sharded(model) else None))
            self._synced = iteration
        return self._engine

    def weights_changed(self) -> None:
        """Sync at the next use, though no iteration has passed."""
        self._synced = None

    def _waiting(self, engine: RolloutEngine) -> list[Tensor]:
        """The idle tensors, without those that the engine decodes with."""
        used = {id(p) for p in self._policy.parameters()} if engine.shares_weights else set()
        return [tensor for tensor in self._idle() if id(tensor) not in used]

    def prepare(self, problems: Sequence[Encoded], max_new_tokens: int, iteration: int) -> None:
        """Before sampling: sync the weights, and agree with all ranks how many sequences are decoded at a time.

        Collective; so that no rank lags behind for want of memory that others have, and refills batches as they do.

        Args:
            problems: those of this rank that will be answered.
            max_new_tokens: longest response.
            iteration: iterations completed.
        """
        engine = self.engine(iteration)
        if not isinstance(engine, BoundedEngine):
            return
        longest = max((len(ids) for _, ids in problems), default=0) + max_new_tokens
        leaving = held_bytes(self._waiting(engine))
        with self._runtime.autocast():
            own = torch.tensor(engine.affordable(longest, leaving), device=self._runtime.device)
        agreed = int(reduced(own, dist.ReduceOp.MIN))
        if agreed < self._fewest:
            self._fewest = agreed
            self._runtime.say(
                f"sampling {agreed} sequences of up to {longest} tokens at a time (model.rollout.max_concurrent is "
                f"{self._settings.max_concurrent}): no more fit into memory on every rank"
            )
        engine.concurrent = agreed

    @torch.no_grad()
    def draw(
        self,
        problems: Sequence[Encoded],
        sampling: Sampling,
        stage: str,
        samples: Sequence[int],
        iteration: int,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> list[Completion]:
        """Sample one response for each entry.

        Args:
            problems: problems with their prompt ids.
            sampling: sampling parameters.
            stage: part of the key of the random numbers, e.g. "train/12".
            samples: sample index of each entry within its problem.
            iteration: iterations completed, the version of the weights.
            on_progress: called with (responses finished, responses in total, tokens sampled so far).
        """
        keys = [sequence_key(self._seed, stage, p.key, s) for (p, _), s in zip(problems, samples, strict=True)]
        engine = self.engine(iteration)
        engine.wake()
        try:
            with on_host(self._waiting(engine)), self._runtime.autocast():
                prompts = [ids for _, ids in problems]
                completions = engine.generate(prompts, sampling, keys=keys, on_progress=on_progress)
        finally:
            engine.sleep()
        return [replace(c, version=self._synced) if c.version is None else c for c in completions]

    def release(self) -> None:
        """Free the engine's own copy of the weights, if it has one, until the next sampling."""
        if isinstance(self._engine, FreesWeights):
            self._engine.free_weights()
            self._synced = None

    def judge(self, problems: Sequence[Encoded], completions: Sequence[Completion]) -> tuple[list[str], list[Verdict]]:
        """Decoded responses and their verdicts."""
        texts = [str(self._tokenizer.decode(c.response_ids, skip_special_tokens=True)) for c in completions]
        self._timer.report("verifying", 0, len(texts))
        golds = [p.gold for p, _ in problems]
        verdicts = self._verifier.score(texts, golds, finished=[c.finished for c in completions])
        self._timer.report("verifying", len(texts), len(texts))
        return texts, verdicts

    def custom_rewards(self, problems: Sequence[Encoded], texts: Sequence[str]) -> dict[str, list[float]]:
        """The unweighted value of each custom reward for every response, by the reward's name; NaN where it failed."""
        return self._verifier.custom(texts, [p.answer for p, _ in problems])

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None


def scored_responses(
    problems: Sequence[Encoded],
    completions: Sequence[Completion],
    texts: Sequence[str],
    verdicts: Sequence[Verdict],
    samples: Sequence[int],
) -> list[Scored]:
    """Combine problems, completions, texts, verdicts and sample indices, all in the same order."""
    return [
        Scored(problem, text, len(c.response_ids), verdict, sample, c.finished)
        for (problem, _), text, c, verdict, sample in zip(problems, texts, completions, verdicts, samples, strict=True)
    ]
