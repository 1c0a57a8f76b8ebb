"""Dataclasses passed between packages, from problem to training batch, and protocols of replaceable parts.

This module imports neither torch nor Lightning at run time, so that the verifier's workers may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

LARGEST_REWARD = 1e9
"""Of a custom reward's values and of weights, in size: squares of their products stay finite in float32."""

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "k2", "k3"]
Reason = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "unparsable", "gold_unparsable"]


class TaskGold(NamedTuple):
    """What the scorer of a reasoning-gym task is given in place of a gold answer; passes through JSON unchanged.

    Attributes:
        task: name of the task.
        settings: of its difficulty.
        entry: the problem as its generator made it.
    """

    task: str
    settings: dict[str, Any]
    entry: dict[str, Any]

    @property
    def answer(self) -> str:
        """The generator's own answer."""
        return str(self.entry["answer"])


Gold = str | TaskGold
"""What an answer is judged by: a gold answer, or what the scorer of the problem's task needs."""


@dataclass(frozen=True)
class Problem:
    r"""A problem whose answer can be checked.

    Attributes:
        key: stable and unique within its source, e.g. ``gsm8k/train/17``; seeds the random numbers of its responses.
        prompt: the user's turn, before any chat template.
        answer: gold answer as LaTeX or plain text, without ``\boxed{}``.
        source: name of the data set.
        level: graded difficulty, if the source has one.
        solution: a worked response that ends in ``\boxed{answer}``, if the source has one (supervised warm-up).
        task: what the scorer of its task needs, where that judges instead of a comparison with `answer`.
    """

    key: str
    prompt: str
    answer: str
    source: str = ""
    level: int | None = None
    solution: str | None = None
    task: TaskGold | None = None

    @property
    def gold(self) -> Gold:
        """What the verifier judges answers by."""
        return self.task or self.answer


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled. A model's `generation_config` is never used.

    Attributes:
        temperature: divides the logits wherever a log-probability is computed; 0 means greedy.
        max_new_tokens: longest response in tokens, the end-of-sequence token included.
        top_p: nucleus mass; 1 disables it. Any other value biases the ratio of the policy loss.
        top_k: number of tokens kept; 0 disables it.
    """

    temperature: float = 1.0
    max_new_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0

    @property
    def greedy(self) -> bool:
        """Whether sampling always takes the most likely token."""
        return self.temperature == 0


@dataclass
class Completion:
    """One sampled response.

    Attributes:
        response_ids: sampled token ids, the final end-of-sequence token included.
        logprobs: log-probability of each of them under the sampling distribution at `Sampling.temperature`, before
            top-p/top-k (vLLM: after), float32, same length.
        finished: ended by an end-of-sequence token; False means truncated by `max_new_tokens`.
        version: iterations that the weights which sampled it had been trained for; None where the engine leaves it to
            its caller, who knows what was synced.
    """

    response_ids: list[int]
    logprobs: list[float]
    finished: bool
    version: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The verifier's verdict on one response.

    Attributes:
        reward: 1.0 if the answer is equivalent to the gold answer, else 0.0.
        reason: one of `Reason`.
        answer: the answer extracted from the response, if any.
        seconds: wall-clock time spent on it.
        rule: how the answer was found equivalent, for people; empty where it was not, or the verifier does not say.
    """

    reward: float
    reason: Reason
    answer: str | None = None
    seconds: float = 0.0
    rule: str = ""


@dataclass
class Scored:
    """A response with its verdict, value and advantage, as callbacks show it and evaluations write it to disk.

    Attributes:
        problem: the problem it answers.
        text: the decoded response.
        tokens: response length in tokens.
        verdict: the verifier's verdict.
        sample: 0-based index among the samples of this problem; -1 for the greedy response.
        finished: False if truncated.
        value: V(prompt), the critic's probability of success, if computed.
        values: V(s_t) before each token of the response, if an evaluation computed it with a token-level critic.
        advantage: A of the response (mean over tokens for a token-level estimator), if it was trained on.
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


Encoded = tuple[Problem, list[int]]
"""A problem and its prompt's token ids."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses on one rank: B sequences, at most P prompt and T response tokens.

    Both id tensors are padded on the right; masks come from the lengths, never from token ids.

    Attributes:
        prompt_ids: [B, P] int64.
        prompt_lengths: [B] int64.
        response_ids: [B, T] int64.
        response_lengths: [B] int64, the end-of-sequence token counted.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    response_ids: Tensor
    response_lengths: Tensor

    def __len__(self) -> int:
        return int(self.prompt_lengths.shape[0])

    @property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs of policy and token-level critic: prompt ids and lengths, response ids and lengths."""
        return self.prompt_ids, self.prompt_lengths, self.response_ids, self.response_lengths

    def lengths(self) -> Tensor:
        """Prompt and response tokens of each sequence, [B] int64 on the CPU."""
        return (self.prompt_lengths + self.response_lengths).cpu()

    def select(self, rows: Tensor) -> Self:
        """The tensors of the sequences `rows` ([N] int64), padded no further than the longest of them."""
        p, t = int(self.prompt_lengths[rows].max()), int(self.response_lengths[rows].max())

        def pick(name: str, value: Tensor) -> Tensor:
            picked = value[rows]
            return picked if picked.ndim == 1 else picked[:, : p if name == "prompt_ids" else t]

        return replace(self, **{name: pick(name, value) for name, value in self.tensors().items()})

    def contents(self, rows: Tensor) -> dict[str, object]:
        """The tensors of some sequences ([N] int64) on the CPU, to be saved for inspection."""
        return {name: value[rows].cpu() for name, value in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by field."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if hasattr(value, "ndim")}


@dataclass(frozen=True)
class Rollouts(Sequences):
    """Sampled and verified responses; those to one problem are adjacent.

    Attributes:
        logprobs: [B, T] float32, log-probabilities under the policy that sampled, zeros on padding.
        versions: [B] int64, iterations that the weights of that policy had been trained for.
        rewards: [B] float32, the policy's reward at the end of the response, shaping included.
        labels: [B] float32 in [0, 1], the verdicts, never shaped.
        greedy_rewards: [B] float32, reward of the greedy response to the same problem; None without such a baseline.
        scored: the same B responses as text.
        sampled_tokens: tokens of all sampled responses, greedy ones included.
        sampled_sequences: number of these responses.
        custom_rewards: the unweighted value of each custom reward for each response, by its name; NaN where it failed
            and counted 0.
    """

    logprobs: Tensor
    versions: Tensor
    rewards: Tensor
    labels: Tensor
    greedy_rewards: Tensor | None
    scored: list[Scored]
    sampled_tokens: int
    sampled_sequences: int
    custom_rewards: dict[str, list[float]] = field(default_factory=dict, kw_only=True)

    def contents(self, rows: Tensor) -> dict[str, object]:
        """As `Sequences.contents`, with prompts and responses as text."""
        texts = [(self.scored[row].problem.prompt, self.scored[row].text) for row in rows.tolist()]
        return {**super().contents(rows), "texts": texts}


@dataclass(frozen=True)
class TrainingBatch(Rollouts):
    """Rollouts with everything that the update needs, computed with the weights before any update.

    Attributes:
        values: [B] float32, V of the critic or of a memory of prompts, zeros without either; [B, T] of a token-level
            critic, zeros on padding.
        targets: same shape, the critic's targets: the labels, or returns computed from the labels alone.
        advantages: [B] float32; [B, T] of a token-level estimator, zeros on padding.
        loss_mask: [B, T] bool, the tokens that the policy is trained on.
        reference: [B, T] float32, log-probabilities under the reference policy, if there is one.
        bad_values: number of responses, over all ranks, whose V was not finite.
    """

    values: Tensor
    targets: Tensor
    advantages: Tensor
    loss_mask: Tensor
    reference: Tensor | None
    bad_values: int


T = TypeVar("T")


class Intact(Generic[T]):
    """Hides a batch from Lightning's precision plugins, which would round the tensors of any dataclass or list.

    Attributes:
        content: the batch.
    """

    def __init__(self, content: T) -> None:
        self.content = content


class RolloutEngine(Protocol):
    """Samples responses from its own copy of the policy's weights, or from the policy itself.

    Attributes:
        deterministic: the same keys give the same responses, whatever else is in the batch.
        shares_weights: decodes with the policy's own parameters, so that `sync_weights` is not needed.
        exact: its log-probabilities are those of the policy's forward pass, except for rounding in the run's precision.
    """

    deterministic: bool
    shares_weights: bool
    exact: bool

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Load the policy's current weights, given by parameter name."""

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
            sampling: temperature, limit and truncation.
            keys: 64-bit seed of each response's random numbers; needed unless greedy.
            max_new_tokens: the limit of each response, instead of `sampling.max_new_tokens`.
            on_progress: called with (responses finished, responses in total, tokens sampled so far).
        """

    def sleep(self) -> None:
        """Release memory that only sampling needs, until `wake`."""

    def wake(self) -> None:
        """Prepare to sample again."""

    def close(self) -> None:
        """Free everything; the engine is not used again."""


@runtime_checkable
class FreesWeights(Protocol):
    """An engine whose own copy of the weights is freed between samplings, and synced again before each."""

    def free_weights(self) -> None:
        """Free the copy until `sync_weights` is called again; no-op without one."""


@runtime_checkable
class BoundedEngine(Protocol):
    """A rollout engine that decodes a bounded number of sequences at a time, which all ranks agree on.

    Attributes:
        concurrent: most sequences decoded at a time; set before sampling.
    """

    concurrent: int

    def affordable(self, tokens: int, leaving: int = 0) -> int:
        """Most sequences of so many tokens that fit into the memory free now and `leaving` bytes, at most its limit."""


class Verifier(Protocol):
    """Verifies responses outside the training process."""

    def score(
        self, responses: Sequence[str], golds: Sequence[Gold], finished: Sequence[bool] | None = None
    ) -> list[Verdict]:
        """One verdict per response, in order; never raises because of a response, never hangs."""

    def custom(self, responses: Sequence[str], golds: Sequence[str]) -> dict[str, list[float]]:
        """The unweighted value of each custom reward for every response, by the reward's name; NaN where it failed."""

    def close(self) -> None:
        """End the worker processes; new ones start when it is used again."""
