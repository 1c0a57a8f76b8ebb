"""What travels between the rooms of the house, from a problem to a batch of rollouts.

This module imports neither torch nor Lightning at run time, so that answer-judging workers may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Reason = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "unparsable", "gold_unparsable"]


@dataclass(frozen=True)
class Problem:
    """A problem whose answer can be checked.

    Attributes:
        key: stable and unique within its source, e.g. ``gsm8k/train/17``; keys the random numbers of its responses.
        prompt: the user's turn, before any chat template.
        answer: gold answer as LaTeX or plain text, without ``\\boxed{}``.
        source: name of the data set.
        level: graded difficulty, if the source has one.
        solution: a worked response that ends in ``\\boxed{answer}``, if the source has one (supervised warm-up).
    """

    key: str
    prompt: str
    answer: str
    source: str = ""
    level: int | None = None
    solution: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. Every field is always set explicitly: nothing leaks in from a `generation_config`.

    Attributes:
        temperature: divides the logits wherever a log-probability is taken; 0 means greedy.
        max_new_tokens: most tokens of a response, the end-of-sequence token included.
        top_p: nucleus mass; 1 switches it off. Anything else makes the ratio of the policy loss biased.
        top_k: most tokens kept; 0 switches it off.
    """

    temperature: float = 1.0
    max_new_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken at every step."""
        return self.temperature == 0


@dataclass
class Completion:
    """One sampled response.

    Attributes:
        response_ids: sampled token ids, the end-of-sequence token that ended it included.
        logprobs: log-probability of each of them under the sampling distribution at `Sampling.temperature` (before
            top-p/top-k), float32, same length.
        finished: ended by an end-of-sequence token; False means truncated by `max_new_tokens`.
    """

    response_ids: list[int]
    logprobs: list[float]
    finished: bool


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one response.

    Attributes:
        reward: 1.0 if the answer is equivalent to the gold answer, else 0.0.
        reason: why, one of `Reason`.
        answer: what was extracted from the response, if anything.
        seconds: wall-clock time spent on it.
    """

    reward: float
    reason: Reason
    answer: str | None = None
    seconds: float = 0.0


@dataclass
class Scored:
    """A response with all that is known of it: what the callbacks show and the evaluation writes to disk.

    Attributes:
        problem: what was asked.
        text: the response, decoded for reading.
        tokens: response length in tokens.
        verdict: the verifier's word.
        sample: 0-based index among the samples of this problem; -1 for the greedy response.
        finished: False if truncated.
        value: V(prompt), the critic's probability of success, if a critic read it.
        values: V(s_t), before each token of the response, if a token-level critic read it during evaluation.
        advantage: A of the response (mean over tokens where it varies by token), if it was trained on.
    """

    problem: Problem
    text: str
    tokens: int
    verdict: Verdict
    sample: int = 0
    finished: bool = True
    value: float | None = None
    advantage: float | None = None
    values: list[float] | None = None


@dataclass
class RolloutBatch:
    """The rollouts of one iteration on one rank: B sequences, at most P prompt and T response tokens.

    Both id tensors are padded on the right; masks come from the lengths, never from token ids.

    Attributes:
        prompt_ids: [B, P] int64.
        prompt_lengths: [B] int64.
        response_ids: [B, T] int64.
        response_lengths: [B] int64, the end-of-sequence token counted.
        logprobs: [B, T] float32, log-probabilities under the policy that sampled.
        reference: [B, T] float32, log-probabilities under the reference policy; zeros where there is none.
        rewards: [B] float32, what the policy is paid at the end of the response (shaping included).
        labels: [B] float32 in [0, 1], the verdicts, never shaped.
        values: [B] float32, V before any update; [B, T] of a token-level critic, zeros on padding.
        targets: of the same shape, what the critic learns: the labels, or the returns made of them alone.
        advantages: [B] float32; [B, T] of a token-level estimator, zeros on padding.
        kept: [B] bool, whether the policy learns from the response.
        scored: the same rollouts for reading, B of them.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    response_ids: Tensor
    response_lengths: Tensor
    logprobs: Tensor
    reference: Tensor
    rewards: Tensor
    labels: Tensor
    values: Tensor
    targets: Tensor
    advantages: Tensor
    kept: Tensor
    scored: list[Scored]

    def __len__(self) -> int:
        return int(self.prompt_lengths.shape[0])

    def lengths(self) -> Tensor:
        """Prompt and response tokens of each sequence, [B] int64 on the CPU."""
        return (self.prompt_lengths + self.response_lengths).cpu()

    def _map(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "scored"}

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch with every tensor on `device`."""
        return replace(self, **self._map(lambda t: t.to(device)))

    def select(self, rows: Tensor) -> RolloutBatch:
        """The tensors of the sequences `rows` ([N] int64), padded no further than the longest of them."""
        picked = replace(self, **self._map(lambda t: t[rows]), scored=[])
        p, t = int(picked.prompt_lengths.max()), int(picked.response_lengths.max())
        trimmed = picked._map(lambda value: value[:, :t] if value.ndim == 2 else value)
        return replace(picked, **{**trimmed, "prompt_ids": picked.prompt_ids[:, :p]})

    def contents(self, pieces: Sequence[Tensor]) -> dict[str, Any]:
        """The sequences of some micro-batches ([N] int64 each) as tensors and texts, to be saved for inspection."""
        rows = [int(row) for piece in pieces for row in piece]
        texts = [(self.scored[row].problem.prompt, self.scored[row].text) for row in rows]
        return {**self._map(lambda t: t[rows].cpu()), "texts": texts}


class RolloutEngine(Protocol):
    """Samples responses from its own copy of, or a reference to, the policy's weights."""

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's current weights, by parameter name."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keys: Sequence[int] | None = None,
        max_new_tokens: Sequence[int] | None = None,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt (token ids), in the order of `prompts`.

        Args:
            prompts: token ids of each prompt, none empty.
            sampling: temperature, limits and truncation.
            keys: 64-bit integers that determine each response's random numbers; needed unless greedy.
            max_new_tokens: a limit of its own for each response, instead of `sampling.max_new_tokens`.
            on_progress: called with (responses finished, responses in all, tokens sampled so far).
        """


class Verifier(Protocol):
    """Judges responses outside the training process."""

    def score(
        self, responses: Sequence[str], golds: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """One verdict per response, in order; never raises for what a response says, never hangs."""

    def close(self) -> None:
        """End the worker processes."""
