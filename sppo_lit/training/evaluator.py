"""Evaluation on held-out problems: greedy responses, and k samples each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import lightning.pytorch as pl

from sppo_lit.algorithms.batching import pad_rows
from sppo_lit.distributed.collectives import ranks
from sppo_lit.settings import EvalSettings
from sppo_lit.training.metrics import GREEDY, ValidationResults
from sppo_lit.training.passes import ValueReader
from sppo_lit.training.protocols import ResponseStore, callbacks_of, validation_names
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.sampler import Sampler, scored_responses
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Completion, Encoded, Problem, Sampling, Scored, Sequences

ResponseLookup = Callable[[int, Problem, int], "Scored | None"]
"""(number of the validation set, problem, sample) -> the response, if an interrupted evaluation stored it."""


class Evaluator:
    """Samples and verifies responses to held-out problems.

    Args:
        sampler: samples and verifies responses.
        settings: greedy or not, samples, temperature.
        max_new_tokens: longest response in tokens, if the settings have no limit.
        values: computes the critic's V of every response; None for no values.
        runtime: runtime of this rank.
        timer: receives the progress.
        stop: stops the run on a signal.

    Attributes:
        results: results of the running or latest evaluation.
    """

    def __init__(
        self,
        sampler: Sampler,
        settings: EvalSettings,
        max_new_tokens: int,
        values: ValueReader | None,
        runtime: Runtime,
        timer: PhaseTimer,
        stop: StopControl,
    ) -> None:
        self._sampler, self._settings, self._values = sampler, settings, values
        self._limit = settings.max_new_tokens or max_new_tokens
        self._runtime, self._timer, self._stop = runtime, timer, stop
        self._lookups: Sequence[ResponseLookup] = ()
        self.results = ValidationResults((), runtime.device)
        self._done = self._total = 0
        self._most: int | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Start an evaluation: count its responses, and find callbacks that store those of an interrupted one."""
        loaders = trainer.val_dataloaders or []
        problems = sum(len(batch.content) for loader in loaders for batch in loader.dataset)
        self._most = None  # problems of each set on this rank
        if trainer.sanity_checking and (most := self._settings.at_start) is not None:
            rank, world_size = self._runtime.rank, self._runtime.ranks  # rank r has problems r, r + world_size, …
            self._most = max(0, -(-(most - rank) // world_size))
            problems = sum(min(self._most, len(batch.content)) for loader in loaders for batch in loader.dataset)
        self._done, self._total = 0, problems * self._settings.responses
        self._lookups = [c.stored_response for c in callbacks_of(trainer) if isinstance(c, ResponseStore)]
        self.results = ValidationResults(validation_names(trainer), self._runtime.device)

    def answer(self, problems: Sequence[Encoded], number: int, iteration: int) -> list[Scored]:
        """All responses to some problems; stored ones are not sampled again.

        All ranks must call this equally often, even without problems: sharded weights are gathered collectively.

        Args:
            problems: problems of this rank, with their prompt ids.
            number: number of their validation set.
            iteration: iterations completed, the version of the weights.
        """
        settings, problems = self._settings, problems[: self._most]
        sampled = Sampling(temperature=settings.temperature, max_new_tokens=self._limit)
        rounds = [([GREEDY], Sampling(temperature=0.0, max_new_tokens=self._limit))] if settings.greedy else []
        rounds += [(list(range(settings.samples)), sampled)] if settings.samples else []
        scored: list[Scored] = []
        with self._stop.interruptible(boundary=False):
            self._sampler.prepare(problems, self._limit, iteration)
            for samples, sampling in rounds:
                missing: list[tuple[Encoded, int]] = []
                for problem in problems:
                    for sample in samples:
                        stored = self._find(number, problem[0], sample)
                        if stored is None:
                            missing.append((problem, sample))
                        else:
                            scored.append(stored)
                            self._done += 1
                scored += self._sample([p for p, _ in missing], sampling, [s for _, s in missing], iteration)
            self._sampler.release()
        self.results.update(number, scored)
        return scored

    def _find(self, number: int, problem: Problem, sample: int) -> Scored | None:
        return next((s for lookup in self._lookups if (s := lookup(number, problem, sample)) is not None), None)

    def _sample(self, problems: list[Encoded], sampling: Sampling, samples: list[int], iteration: int) -> list[Scored]:
        start = time.perf_counter()

        def on_progress(finished: int, total: int, tokens: int) -> None:
            if ranks() == 1 or self._values is None:  # computing values is collective: no rank may leave alone
                self._stop.break_off(boundary=False)
            rate = tokens / max(time.perf_counter() - start, 1e-9)
            done = self._done + finished
            self._timer.report("evaluating", done, self._total, tokens=tokens, tokens_per_second=rate)

        completions = self._sampler.draw(problems, sampling, "validate", samples, iteration, on_progress)
        self._done += len(problems)
        texts, verdicts = self._sampler.judge(problems, completions)
        scored = scored_responses(problems, completions, texts, verdicts, samples)
        return scored if self._values is None else self._with_values(problems, completions, scored, self._values)

    def _with_values(
        self, problems: list[Encoded], completions: list[Completion], scored: list[Scored], reader: ValueReader
    ) -> list[Scored]:
        """Add V(prompt); with a token-level critic also V before each token."""
        self._stop.wait()  # computing values is collective under sharding
        if not problems:
            reader.join()
            return scored
        prompts = pad_rows([ids for _, ids in problems], self._runtime.device)
        responses = pad_rows([c.response_ids for c in completions], self._runtime.device)
        values = reader.read(Sequences(*prompts, *responses))
        if values.ndim == 1:
            return [replace(s, value=v) for s, v in zip(scored, values.tolist(), strict=True)]
        by_token = [[round(v, 5) for v in row[: s.tokens]] for s, row in zip(scored, values.tolist(), strict=True)]
        first = values[:, 0].tolist()
        return [replace(s, value=v, values=row) for s, v, row in zip(scored, first, by_token, strict=True)]
