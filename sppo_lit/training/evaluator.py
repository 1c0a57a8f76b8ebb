"""How a policy answers held-out problems: greedily, and with k samples each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sppo_lit.training.metrics import GREEDY
from sppo_lit.types import Completion, Problem, Sampling, Scored, Verdict

if TYPE_CHECKING:
    from sppo_lit.training.policy_module import Encoded, PolicyModule

Known = Callable[[int, Problem, int], "Scored | None"]


class Validation:
    """Answers of one policy to held-out problems.

    Args:
        module: samples and judges, by its settings `evaluation`.

    Attributes:
        known: (number of the set, problem, sample) -> the response if an interrupted evaluation has left it on disk.
    """

    def __init__(self, module: PolicyModule) -> None:
        self._module = module
        self.known: Known = lambda number, problem, sample: None
        self._done = self._total = 0

    def begin(self) -> None:
        """Count this rank's responses to come, for the progress display."""
        loaders = cast(list[Any], self._module.trainer.val_dataloaders)
        problems = sum(len(chunk) for loader in loaders for chunk in loader.dataset)
        self._done, self._total = 0, problems * self._module.evaluation.responses

    def answer(self, encoded: list[Encoded], number: int) -> list[Scored]:
        """All responses to some problems; those already known are not sampled again.

        Ranks do this equally often, also with no problem at all: sharded weights are gathered by all together.

        Args:
            encoded: problems of this rank with their prompt ids.
            number: of the validation set that they are from.
        """
        settings = self._module.evaluation
        limit = settings.max_new_tokens or self._module.sampling.max_new_tokens
        drawn = Sampling(temperature=settings.temperature, max_new_tokens=limit)
        rounds = [([GREEDY], Sampling(temperature=0.0, max_new_tokens=limit))] if settings.greedy else []
        rounds += [(list(range(settings.samples)), drawn)] if settings.samples else []
        scored: list[Scored] = []
        for samples, sampling in rounds:
            missing = []
            for entry in encoded:
                for sample in samples:
                    found = self.known(number, entry[0], sample)
                    if found is None:
                        missing.append((entry, sample))
                    else:
                        scored.append(found)
                        self._done += 1
            scored += self._sample([entry for entry, _ in missing], sampling, [sample for _, sample in missing])
        return scored

    def _sample(self, encoded: list[Encoded], sampling: Sampling, samples: list[int]) -> list[Scored]:
        module = self._module
        completions = module.sample(encoded, sampling, "validate", samples, "evaluating", self._done, self._total)
        self._done += len(encoded)
        texts, verdicts = module.judge(encoded, completions)
        scored = scored_responses(encoded, completions, texts, verdicts, samples)
        if module.evaluation.values:
            module.read_values(encoded, completions, scored)
        return scored


def scored_responses(
    encoded: Sequence[Encoded],
    completions: Sequence[Completion],
    texts: Sequence[str],
    verdicts: Sequence[Verdict],
    samples: Sequence[int],
) -> list[Scored]:
    """Responses with what sampler and judges say of them, all equally many and in one order."""
    return [
        Scored(problem, text, len(c.response_ids), verdict, sample, c.finished)
        for (problem, _), text, c, verdict, sample in zip(encoded, texts, completions, verdicts, samples, strict=True)
    ]
