"""From problems to a training batch: responses, verdicts, values, advantages (paper, section 3).

Everything is computed with the weights before any update of the iteration. Algorithms differ in their row of
`algorithms.specs.ALGORITHMS`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from sppo_lit.algorithms.batching import check_minibatch, earlier, pad_rows
from sppo_lit.algorithms.losses import kl_penalty
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.algorithms.tracking import BaselineMemory
from sppo_lit.distributed.collectives import gathered, reduced
from sppo_lit.distributed.sharding import is_sharded
from sppo_lit.errors import SharedError
from sppo_lit.models.policy import Policy
from sppo_lit.rewards.shaping import overlong_penalty
from sppo_lit.settings import AdvantageSettings, KLSettings, RewardSettings
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.estimates import estimates
from sppo_lit.training.metrics import GREEDY
from sppo_lit.training.passes import ValueReader, read_logprobs
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.sampler import Sampler, scored_responses
from sppo_lit.training.selection import prompt_keys
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Completion, Encoded, Rollouts, Sampling, Scored, TrainingBatch, Verdict


class ReferencePolicy:
    """Log-probabilities under the frozen policy that a KL penalty refers to.

    Args:
        policy: the reference; with LoRA, the trained policy, whose adapters are disabled.
        trained: the trained policy, whose dtype is used.
        budget: token budget of one forward pass.
        temperature: sampling temperature.
        runtime: runtime of this rank.
    """

    def __init__(
        self, policy: Policy, trained: Policy, budget: TokenBudget, temperature: float, runtime: Runtime
    ) -> None:
        self._policy, self._trained = policy, trained
        self._budget, self._temperature, self._runtime = budget, temperature, runtime

    def parameters(self) -> Iterator[nn.Parameter]:
        """The reference policy's."""
        return self._policy.parameters()

    @torch.no_grad()
    def logprobs(self, rollouts: Rollouts) -> Tensor:
        """Log-probabilities of the responses, [B, T] float32, zeros on padding."""
        if self._policy is not self._trained:
            self._policy.to(self._trained.model.dtype)  # Lightning converts only submodules of the module
            if not is_sharded(self._policy):
                self._policy.to(self._runtime.device)
        logprobs = torch.zeros_like(rollouts.logprobs)
        pieces = self._budget.cut(torch.arange(len(rollouts)), rollouts.lengths())
        with self._runtime.autocast(), self._policy.without_adapters():
            read_logprobs(self._policy, rollouts, pieces, self._temperature, self._budget, self._runtime, logprobs)
        return logprobs


class Collector:
    """Makes the training batch of an iteration.

    Args:
        spec: the algorithm.
        sampler: samples and verifies responses.
        sampling: sampling parameters.
        samples: N, responses to each problem.
        minibatch_size: sequences of one optimizer step, over all ranks.
        reward: how verdicts become rewards.
        advantage: how rewards become advantages.
        kl: penalty on the KL divergence from the reference policy.
        values: computes the critic's V; None without a critic.
        memory: remembers V of prompts instead; None without.
        reference: the reference policy; None without a penalty.
        runtime: runtime of this rank.
        timer: measures phases.
        stop: stops the run on a signal.
    """

    def __init__(
        self,
        spec: AlgorithmSpec,
        sampler: Sampler,
        sampling: Sampling,
        samples: int,
        minibatch_size: int,
        reward: RewardSettings,
        advantage: AdvantageSettings,
        kl: KLSettings,
        values: ValueReader | None,
        memory: BaselineMemory | None,
        reference: ReferencePolicy | None,
        runtime: Runtime,
        timer: PhaseTimer,
        stop: StopControl,
    ) -> None:
        self._spec, self._sampler, self._sampling = spec, sampler, sampling
        self._samples, self._minibatch_size = samples, minibatch_size
        self._reward, self._advantage, self._kl = reward, advantage, kl
        self._values, self._memory, self._reference = values, memory, reference
        self._runtime, self._timer, self._stop = runtime, timer, stop

    def collect(self, problems: Sequence[Encoded], iteration: int) -> TrainingBatch:
        """Sample responses of the current policy, verify them, and compute values and advantages.

        Args:
            problems: problems of this rank, with their prompt ids.
            iteration: 0-based.

        Returns:
            Problems × samples sequences on this rank's device.

        Raises:
            InputError: the sequences cannot be cut into minibatches.
        """
        ranks = self._runtime.ranks
        check_minibatch(len(problems) * ranks, self._samples, self._minibatch_size, ranks)  # before sampling
        rollouts = self._rollouts(problems, iteration)
        with self._timer("values"):
            values, usable, bad_values = self._trusted_values(rollouts)
            reference = None if self._reference is None else self._reference.logprobs(rollouts)
        return self._training_batch(rollouts, values, usable, bad_values, reference)

    def _rollouts(self, problems: Sequence[Encoded], iteration: int) -> Rollouts:
        """Sample and verify."""
        repeated = [problem for problem in problems for _ in range(self._samples)]
        samples = self._sample_indices(problems)
        with self._stop.interruptible(boundary=True):
            with self._timer("rollout"):
                self._sampler.prepare(problems, self._sampling.max_new_tokens, iteration)
                completions = self._draw(repeated, self._sampling, samples, iteration, "sampling")
                greedy = self._draw_greedy(problems, iteration) if self._spec.greedy else []
                self._sampler.release()
            with self._timer("verify"):
                texts, verdicts = self._sampler.judge(repeated, completions)
                rewards, custom = self._rewards(repeated, completions, texts, verdicts)
                baseline = None
                if greedy:
                    baseline, _ = self._rewards(problems, greedy, *self._sampler.judge(problems, greedy))
        self._check_custom(custom, iteration)
        device, sampled = self._runtime.device, [*completions, *greedy]
        return Rollouts(
            *pad_rows([ids for _, ids in repeated], device),
            *pad_rows([c.response_ids for c in completions], device),
            logprobs=pad_rows([c.logprobs for c in completions], device, torch.float32)[0],
            versions=torch.tensor([c.version for c in completions], device=device),
            rewards=rewards,
            labels=torch.tensor([float(v.reward) for v in verdicts], device=device),
            greedy_rewards=None if baseline is None else baseline.repeat_interleave(self._samples),
            scored=scored_responses(repeated, completions, texts, verdicts, samples),
            sampled_tokens=sum(len(c.response_ids) for c in sampled),
            sampled_sequences=len(sampled),
            custom_rewards=custom,
        )

    def _sample_indices(self, problems: Sequence[Encoded]) -> list[int]:
        """Of each response its number among those to its problem in this iteration, which may have drawn it twice."""
        rank, ranks = self._runtime.rank, self._runtime.ranks
        keys = gathered(prompt_keys([problem for problem, _ in problems]).to(self._runtime.device))
        before = earlier(keys.view(ranks, -1).T.flatten().tolist())[rank::ranks]
        return [n * self._samples + s for n in before for s in range(self._samples)]

    def _draw(
        self, problems: Sequence[Encoded], sampling: Sampling, samples: Sequence[int], iteration: int, phase: str
    ) -> list[Completion]:
        start = time.perf_counter()

        def on_progress(finished: int, total: int, tokens: int) -> None:
            self._stop.break_off(boundary=True)
            rate = tokens / max(time.perf_counter() - start, 1e-9)
            self._timer.report(phase, finished, total, tokens=tokens, tokens_per_second=rate)

        return self._sampler.draw(problems, sampling, f"train/{iteration}", samples, iteration, on_progress)

    def _draw_greedy(self, problems: Sequence[Encoded], iteration: int) -> list[Completion]:
        """The greedy response to each problem (baseline of ReMax)."""
        greedy = Sampling(temperature=0.0, max_new_tokens=self._sampling.max_new_tokens)
        return self._draw(problems, greedy, [GREEDY] * len(problems), iteration, "greedy baseline")

    def _rewards(
        self,
        problems: Sequence[Encoded],
        completions: Sequence[Completion],
        texts: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """The policy's reward for every response, [B] float32, and the custom rewards among it."""
        reward, limit = self._reward, self._sampling.max_new_tokens
        custom = self._sampler.custom_rewards(problems, texts) if reward.custom else {}
        custom = {name: [v if math.isfinite(v) else math.nan for v in values] for name, values in custom.items()}
        rewards = []
        for i, (completion, verdict) in enumerate(zip(completions, verdicts, strict=True)):
            values = ((weight, custom[name][i]) for name, weight in reward.custom.items())
            extra = sum(weight * value for weight, value in values if not math.isnan(value))
            overlong = (
                0.0
                if reward.overlong_cache is None
                else overlong_penalty(
                    len(completion.response_ids), limit, reward.overlong_cache, reward.overlong_factor
                )
            )
            rewards.append(reward.correctness * verdict.reward + extra + overlong)
        return torch.tensor(rewards, dtype=torch.float32, device=self._runtime.device), custom

    def _check_custom(self, custom: dict[str, list[float]], iteration: int) -> None:
        """End the run, on all ranks, where a custom reward has failed on every response of an iteration.

        Raises:
            InputError: it has.
        """
        for name, values in custom.items():
            counts = torch.tensor([sum(map(math.isnan, values)), len(values)], device=self._runtime.device)
            failed, all_of_them = reduced(counts).tolist()
            if failed == all_of_them:
                raise SharedError(
                    f"model.reward.custom: {name} failed on all {failed} responses of iteration {iteration + 1} (the "
                    "warning above shows its first failure); correct the function, or remove it from the recipe"
                )

    def _trusted_values(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, int]:
        """V, 0 where not finite; [B] whether it is finite; number of responses over all ranks where it is not."""
        usable = torch.ones_like(rollouts.rewards, dtype=torch.bool)
        if self._memory is not None:
            keys = prompt_keys([s.problem for s in rollouts.scored])
            return self._memory.read(keys.to(self._runtime.device)), usable, 0
        if self._values is None:
            return torch.zeros_like(rollouts.rewards), usable, 0
        values = self._values.read(rollouts)
        usable = values.reshape(len(rollouts), -1).isfinite().all(dim=1)
        bad = int(reduced((~usable).sum()))
        if bad:
            self._runtime.say(f"critic: {bad} values are not finite; the policy is not trained on those responses")
        return torch.where(_like(usable, values), values, 0.0), usable, bad

    def _training_batch(
        self, rollouts: Rollouts, values: Tensor, usable: Tensor, bad_values: int, reference: Tensor | None
    ) -> TrainingBatch:
        costs = None
        if reference is not None and self._kl.where == "reward":
            costs = self._kl.coef * kl_penalty(rollouts.logprobs, reference, self._kl.estimator)  # 0 on padding
        own = estimates(self._spec, self._advantage, self._samples, rollouts, values, usable, costs)
        inherited = {f.name: getattr(rollouts, f.name) for f in fields(rollouts)}
        return TrainingBatch(
            **{**inherited, "scored": self._with_advantages(rollouts, values, own.advantages)},
            **own._asdict(),
            values=values,
            reference=reference,
            bad_values=bad_values,
        )

    def _with_advantages(self, rollouts: Rollouts, values: Tensor, advantages: Tensor) -> list[Scored]:
        """The responses as text, with V(prompt) and the mean advantage of their tokens."""
        means = advantages if advantages.ndim == 1 else advantages.sum(dim=1) / rollouts.response_lengths
        first = (values if values.ndim == 1 else values[:, 0]).tolist()
        without = self._values is None and self._memory is None
        prompt_values = [None] * len(rollouts) if without else first
        return [
            replace(s, value=value, advantage=advantage)
            for s, value, advantage in zip(rollouts.scored, prompt_values, means.tolist(), strict=True)
        ]


def _like(rows: Tensor, tensor: Tensor) -> Tensor:
    """Reshape [B] to broadcast against [B] or [B, T]."""
    return rows.view(-1, *[1] * (tensor.ndim - 1))
