"""Sequence-Level PPO as a LightningModule: sample, judge, value, then update critic and policy.

The order of one iteration (paper, section 3): responses are sampled and verified; V(s_p) and the old log-probabilities
are taken from the weights before any update; A = R − V; then PPO epochs × minibatches × micro-batches, the critic's
step before the policy's. What differs between algorithms is a row of `algorithms.specs.ALGORITHMS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches, pad_rows
from sppo_lit.algorithms.losses import approx_kl, clipped_surrogate
from sppo_lit.algorithms.masking import Aggregation, masked_sum, response_mask, token_weights
from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.distributed import gathered, reduced
from sppo_lit.errors import InputError
from sppo_lit.metrics import brier, explained_variance
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import ModelSource, load_scalar_critic
from sppo_lit.policy_module import Encoded, PolicyModule, check_limits
from sppo_lit.settings import EvalSettings, OptimizerSettings, RewardSettings, VerifierSettings
from sppo_lit.types import Completion, Reason, RolloutBatch, Sampling, Scored, Verdict


class SPPOModule(PolicyModule):
    """Policy and scalar critic, trained on their own rollouts.

    Args:
        policy: where the policy comes from.
        critic: where the critic comes from; None takes the policy's source. May be far smaller than the policy.
        algorithm: a name of `ALGORITHMS`.
        sampling: how training responses are drawn (paper: temperature 0.6).
        evaluation: how held-out problems are answered.
        minibatch_size: sequences of one optimizer step, over all ranks; must divide the iteration's sequences.
        ppo_epochs: passes over the iteration's sequences.
        micro_batch_tokens: most tokens, padding included, of one forward pass with gradient.
        clip_low: ε below 1.
        clip_high: ε above 1.
        dual_clip: c of the dual clip, None for none.
        aggregation: how token losses become one number; None takes the algorithm's.
        old_logprobs: "recompute" takes them in a pass of their own, from the same micro-batches as the update, so
            that the first minibatch's ratio is exactly 1; "sampler" reuses those taken while sampling, which saves the
            pass and is exact up to float error in float32.
        critic_warmup: first iterations in which only the critic learns.
        policy_optimizer: learning rate, schedule and clipping of the policy.
        critic_optimizer: the same of the critic.
        verifier: worker processes and deadline.
        reward: what the policy is paid beside the verdict; the critic's labels stay the verdicts.
        max_concurrent: most sequences decoded at once.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.

    Raises:
        InputError: unknown algorithm or impossible limits.
    """

    def __init__(
        self,
        policy: ModelSource,
        critic: ModelSource | None = None,
        algorithm: str = "sppo",
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        evaluation: EvalSettings = EvalSettings(),  # noqa: B008
        minibatch_size: int = 128,
        ppo_epochs: int = 1,
        micro_batch_tokens: int = 16384,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = 3.0,
        aggregation: Aggregation | None = None,
        old_logprobs: Literal["recompute", "sampler"] = "recompute",
        critic_warmup: int = 0,
        policy_optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=5e-6),  # noqa: B008
        verifier: VerifierSettings = VerifierSettings(),  # noqa: B008
        reward: RewardSettings = RewardSettings(),  # noqa: B008
        max_concurrent: int = 256,
        gradient_checkpointing: bool = False,
    ) -> None:
        check_limits(
            "model", minibatch_size=minibatch_size, ppo_epochs=ppo_epochs, micro_batch_tokens=micro_batch_tokens
        )
        if algorithm not in ALGORITHMS:
            raise InputError(f"model.algorithm {algorithm!r} is unknown; choose one of: {', '.join(ALGORITHMS)}")
        if sampling.greedy:
            raise InputError("model.sampling.temperature is 0: training needs sampled responses; set it above 0")
        reward.check(sampling.max_new_tokens)
        super().__init__(
            policy,
            sampling,
            evaluation,
            policy_optimizer,
            verifier,
            micro_batch_tokens,
            max_concurrent,
            gradient_checkpointing,
        )
        self.spec = ALGORITHMS[algorithm]
        self.critic_source = critic or policy
        self.critic_optimizer = critic_optimizer
        self.minibatch_size = minibatch_size
        self.ppo_epochs = ppo_epochs
        self.clip: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
        self.aggregation: Aggregation = aggregation or self.spec.aggregation
        self.old_logprobs = old_logprobs
        self.critic_warmup = critic_warmup
        self.reward = reward
        self.custom_rewards = reward.custom

    def configure_model(self) -> None:
        """Load policy and critic."""
        super().configure_model()
        if self.critic is None:
            self.critic = ScalarCritic(load_scalar_critic(self.critic_source, self.tokenizer))
            self.checkpoint_gradients(self.critic.model)
            self.shard(self.critic)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One AdamW each for policy and critic."""
        return [self.adamw(self.policy, self.policy_optimizer), self.adamw(self.critic, self.critic_optimizer)]

    # --------------------------------------------------------------------------------------------------------- rollout

    def collect(self, encoded: Sequence[Encoded]) -> RolloutBatch:
        """One iteration's rollouts from the current policy: sampled, judged, valued, with advantages.

        Args:
            encoded: this rank's problems with their prompt ids.

        Returns:
            problems × samples_per_prompt sequences on this module's device, those of one problem next to each other.
        """
        n = self.spec.samples_per_prompt
        encoded = [entry for entry in encoded for _ in range(n)]
        self.check_minibatches(len(encoded), n)  # before anything is sampled
        with self.timed("rollout"):
            samples = list(range(n)) * (len(encoded) // n)
            completions = self.sample(encoded, self.sampling, f"train/{self.iteration}", samples, "sampling")
        with self.timed("verify"):
            texts, verdicts = self.judge(encoded, completions)
            rewards = self._pay(encoded, completions, texts, verdicts)
        self.wait_for_others()
        labels = torch.tensor([float(v.reward) for v in verdicts], device=self.device)
        batch = self._tensors(encoded, completions, rewards, labels)
        with self.timed("values"):
            batch.values = self._values(batch)
        batch.advantages = self.spec.advantage(batch.rewards, batch.values)
        batch.scored = [
            Scored(problem, text, len(c.response_ids), verdict, sample, c.finished, value, advantage)
            for (problem, _), text, c, verdict, sample, value, advantage in zip(
                encoded, texts, completions, verdicts, samples, batch.values.tolist(), batch.advantages.tolist(),
                strict=True,
            )
        ]  # fmt: skip
        return batch

    def _pay(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], texts: list[str], verdicts: list[Verdict]
    ) -> Tensor:
        """The policy's reward of every response, [B] float32."""
        extra = (
            self.verifier.custom(texts, [p.answer for p, _ in encoded]) if self.reward.custom else [0.0] * len(texts)
        )
        overlong = self.reward.penalties([len(c.response_ids) for c in completions], self.sampling.max_new_tokens)
        paid = [self.reward.correctness * v.reward + e + o for v, e, o in zip(verdicts, extra, overlong, strict=True)]
        return torch.tensor(paid, dtype=torch.float32, device=self.device)

    def _tensors(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], rewards: Tensor, labels: Tensor
    ) -> RolloutBatch:
        prompt_ids, prompt_lengths = pad_rows([ids for _, ids in encoded], self.device)
        response_ids, response_lengths = pad_rows([c.response_ids for c in completions], self.device)
        return RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_lengths=prompt_lengths,
            response_ids=response_ids,
            response_lengths=response_lengths,
            logprobs=pad_rows([c.logprobs for c in completions], self.device, torch.float32)[0],
            rewards=rewards,
            labels=labels,
            values=torch.zeros_like(rewards),
            advantages=torch.zeros_like(rewards),
            scored=[],
        )

    @torch.no_grad()
    def _values(self, batch: RolloutBatch) -> Tensor:
        """V(s_p) of every sequence, [B] float32."""
        values = torch.empty_like(batch.rewards)
        pieces = micro_batches(batch.prompt_lengths.cpu(), self.micro_batch_tokens)
        self.join_passes(self.critic, len(pieces))
        with self.trainer.precision_plugin.forward_context():
            for i, rows in enumerate(pieces):
                piece = batch.select(rows)
                values[rows] = self.critic(piece.prompt_ids, piece.prompt_lengths).sigmoid().to(values.dtype)
                self.report_phase("values", i + 1, len(pieces))
        return values

    # ---------------------------------------------------------------------------------------------------------- update

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """PPO epochs × minibatches × micro-batches over one iteration's rollouts."""
        self.last_rollout = batch
        policy_optimizer, critic_optimizer = cast(list[Any], self.optimizers())
        lrs = {
            "policy/lr": self.set_lr(policy_optimizer, self.policy_optimizer),
            "critic/lr": self.set_lr(critic_optimizer, self.critic_optimizer),
        }
        steps: list[dict[str, Tensor]] = []
        with self.timed("update"), self.local_backward():
            plan = self._plan(batch)
            old_logprobs = self._old_logprobs(batch, plan)
            for i, pieces in enumerate(plan):
                self.report_phase("updating", i, len(plan))
                step = self._critic_gradient(batch, pieces)
                step["critic/grad_norm"] = self.optimizer_step_clipped(critic_optimizer, self.critic_optimizer)
                if self.iteration >= self.critic_warmup:
                    step |= self._policy_gradient(batch, pieces, old_logprobs)
                    step["policy/grad_norm"] = self.optimizer_step_clipped(policy_optimizer, self.policy_optimizer)
                steps.append(step)
            self.report_phase("updating", len(plan), len(plan))
        self.finish_iteration(rollout_metrics(batch, old_logprobs, self.seconds) | step_metrics(steps) | lrs)

    def _plan(self, batch: RolloutBatch) -> list[list[Tensor]]:
        """This rank's rows of every micro-batch of every minibatch of every PPO epoch."""
        lengths = (batch.prompt_lengths + batch.response_lengths).cpu()
        return [
            [rows[piece] for piece in micro_batches(lengths[rows], self.micro_batch_tokens)]
            for rows in self.minibatches(len(batch), self.spec.samples_per_prompt, self.ppo_epochs)
        ]

    @torch.no_grad()
    def _old_logprobs(self, batch: RolloutBatch, plan: list[list[Tensor]]) -> Tensor:
        """[B, T] log-probabilities under the weights before any update."""
        if self.old_logprobs == "sampler":
            return batch.logprobs
        old = torch.zeros_like(batch.logprobs)
        for pieces in plan[: len(plan) // self.ppo_epochs]:
            self.join_passes(self.policy, len(pieces))
            for rows in pieces:
                logprobs = self._terms(batch.select(rows)).logprobs
                old[rows, : logprobs.shape[1]] = logprobs.to(old.dtype)
        return old

    def _terms(self, piece: RolloutBatch) -> Any:
        return self.policy(
            piece.prompt_ids,
            piece.prompt_lengths,
            piece.response_ids,
            piece.response_lengths,
            self.sampling.temperature,
        )

    def _critic_gradient(self, batch: RolloutBatch, pieces: list[Tensor]) -> dict[str, Tensor]:
        """Accumulate the critic's gradient over a minibatch."""
        assert self.spec.critic_loss is not None
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        self.join_passes(self.critic, len(pieces))
        for rows in pieces:
            piece = batch.select(rows)
            logits = self.critic(piece.prompt_ids, piece.prompt_lengths)
            loss = self.spec.critic_loss(logits, piece.labels.to(logits.dtype)).sum() / self.minibatch_size
            self.manual_backward(loss)
            total += loss.detach()
        self.wait_for_others()
        return {"critic/loss": reduced(total)}

    def _policy_gradient(self, batch: RolloutBatch, pieces: list[Tensor], old: Tensor) -> dict[str, Tensor]:
        """Accumulate the policy's gradient over a minibatch; token counts are those of the whole minibatch."""
        tokens = int(reduced(batch.response_lengths[torch.cat(pieces)].sum()))
        step: dict[str, Tensor] = Counter()  # type: ignore[assignment]
        low, high = [], []
        self.join_passes(self.policy, len(pieces))
        for rows in pieces:
            piece = batch.select(rows)
            terms = self._terms(piece)
            longest = piece.response_ids.shape[1]
            mask = response_mask(piece.response_lengths, longest)
            before = old[rows, :longest].to(terms.logprobs.dtype)
            surrogate = clipped_surrogate(
                terms.logprobs, before, piece.advantages.to(terms.logprobs.dtype), **self.clip
            )
            weights = token_weights(
                piece.response_lengths,
                longest,
                self.aggregation,
                sequences=self.minibatch_size,
                tokens=tokens,
                norm_length=self.sampling.max_new_tokens,
            )
            loss = masked_sum(surrogate.loss * weights, mask)
            self.manual_backward(loss)
            with torch.no_grad():
                logprobs, ratio = terms.logprobs.detach(), surrogate.ratio.detach()
                step["policy/loss"] += loss.detach()
                step["policy/entropy"] += masked_sum(terms.entropy, mask) / tokens
                step["policy/approx_kl"] += masked_sum(approx_kl(logprobs, before), mask) / tokens
                step["policy/clip_fraction"] += masked_sum(surrogate.clipped.float(), mask) / tokens
                step["policy/dual_clip_fraction"] += masked_sum(surrogate.dual_clipped.float(), mask) / tokens
                low.append(ratio[mask].min())
                high.append(ratio[mask].max())
        self.wait_for_others()
        step = dict(zip(step, reduced(torch.stack(list(step.values()))), strict=True))
        step["policy/ratio_min"] = reduced(torch.stack(low).min(), dist.ReduceOp.MIN)
        step["policy/ratio_max"] = reduced(torch.stack(high).max(), dist.ReduceOp.MAX)
        return step


def rollout_metrics(batch: RolloutBatch, old_logprobs: Tensor, seconds: dict[str, float]) -> dict[str, float]:
    """What practitioners read of all ranks' rollouts, critic and advantages, before any update."""
    mask = response_mask(batch.response_lengths, batch.response_ids.shape[1])
    gap = reduced(masked_sum((batch.logprobs - old_logprobs).abs(), mask))
    slowest = reduced(gap.new_tensor(seconds.get("rollout", 0.0)), dist.ReduceOp.MAX)
    names = get_args(Reason)
    found = Counter(s.verdict.reason for s in batch.scored)
    truncated = sum(not s.finished for s in batch.scored)
    counts = reduced(gap.new_tensor([*(found[name] for name in names), truncated], dtype=torch.int64))
    rewards, labels, lengths = gathered(batch.rewards), gathered(batch.labels), gathered(batch.response_lengths).float()
    values, advantages = gathered(batch.values), gathered(batch.advantages)
    *shares, truncation = (counts / len(rewards)).tolist()
    return {
        "rollout/reward": float(rewards.mean()),
        "rollout/accuracy": float(labels.mean()),
        "rollout/response_length": float(lengths.mean()),
        "rollout/truncation_rate": truncation,
        "rollout/tokens_per_second": float(lengths.sum() / slowest.clamp(min=1e-9)),
        "rollout/logprob_gap": float(gap / lengths.sum()),
        **{f"rollout/reason/{name}": share for name, share in zip(names, shares, strict=True)},
        "critic/value_mean": float(values.mean()),
        "critic/brier": float(brier(values, labels)),
        "critic/explained_variance": float(explained_variance(values, labels)),
        "advantage/mean": float(advantages.mean()),
        "advantage/std": float(advantages.std(unbiased=False)),
    }


def step_metrics(steps: list[dict[str, Tensor]]) -> dict[str, float]:
    """Optimizer steps of an iteration as one number each: extremes of the ratio, means of everything else.

    `policy/first_ratio_deviation` is max |r − 1| of the first minibatch: 0, or π and π_old are not the same function.
    A step skipped for a gradient that is not finite is left out of the mean norm and counted in `*/skipped_steps`.
    """
    metrics: dict[str, float] = {}
    names = sorted({name for step in steps for name in step})
    for name in names:
        values = torch.stack([step[name].float() for step in steps if name in step])
        if name.endswith("grad_norm"):
            finite = values.isfinite()
            metrics[name.replace("grad_norm", "skipped_steps")] = float((~finite).sum())
            values = values[finite] if finite.any() else values
        reduce = {"policy/ratio_min": torch.min, "policy/ratio_max": torch.max}.get(name, torch.mean)
        metrics[name] = float(reduce(values))
    if "policy/ratio_max" in steps[0]:
        first = steps[0]
        metrics["policy/first_ratio_deviation"] = max(
            float(first["policy/ratio_max"]) - 1, 1 - float(first["policy/ratio_min"])
        )
    return metrics
