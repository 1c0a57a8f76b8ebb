"""Sequence-Level PPO, and the baselines it is compared with, as a LightningModule.

The order of one iteration (paper, section 3): responses are sampled and verified; V and the old log-probabilities are
taken from the weights before any update; the advantages follow; then PPO epochs × minibatches × micro-batches, the
critic's step before the policy's. What differs between algorithms is a row of `algorithms.specs.ALGORITHMS`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches
from sppo_lit.algorithms.losses import approx_kl, clipped_surrogate, kl_penalty
from sppo_lit.algorithms.masking import Aggregation, masked_sum, response_mask, token_weights
from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.distributed.collectives import reduced
from sppo_lit.errors import InputError
from sppo_lit.models.loading import ModelSource
from sppo_lit.settings import (
    EvalSettings,
    KLSettings,
    LoraSettings,
    OptimizerSettings,
    RewardSettings,
    VerifierSettings,
)
from sppo_lit.training.diagnostics import critic_metrics, reference_metrics, rollout_metrics, step_metrics
from sppo_lit.training.policy_module import check_limits
from sppo_lit.training.rollout_module import RolloutModule
from sppo_lit.types import RolloutBatch, Sampling


class Minibatch(NamedTuple):
    """This rank's rows of one optimizer step of each network, cut into micro-batches: index tensors, [N] int64 each."""

    critic: list[Tensor]
    policy: list[Tensor]


class SPPOModule(RolloutModule):
    """Policy and critic, trained on their own rollouts.

    Args:
        policy: where the policy comes from.
        critic: where the critic comes from; None takes the policy's source. May be far smaller than the policy.
        algorithm: a name of `ALGORITHMS`.
        sampling: how training responses are drawn (paper: temperature 0.6).
        evaluation: how held-out problems are answered.
        samples_per_prompt: N, responses to each problem; None takes the algorithm's.
        minibatch_size: sequences of one optimizer step, over all ranks; must divide the iteration's sequences.
        ppo_epochs: passes over the iteration's sequences.
        micro_batch_tokens: most tokens, padding included, of one forward pass with gradient.
        clip_low: ε below 1.
        clip_high: ε above 1 (larger than `clip_low`: DAPO's clip-higher).
        dual_clip: c of the dual clip, None for none.
        aggregation: how token losses become one number; None takes the algorithm's.
        entropy_coef: weight of the entropy bonus, per token, in nats.
        kl: penalty for moving away from a reference policy; off by default.
        whiten: shift and scale the advantages to mean 0 and variance 1; None takes the algorithm's.
        drop_equal_groups: the policy does not learn from problems whose N responses were all paid the same.
        gamma: discount per token, of PPO's token-level estimator.
        lam: λ of its generalised advantage estimation.
        value_clip: how far PPO's critic may move from its old value at a gain in one iteration.
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
        lora: train adapters of the policy instead of its weights.
        cpu_offload: under `--strategy fsdp`, keep weights, gradients and optimizer states in the CPU's memory.
        max_skipped_steps: so many steps skipped in a row, for a loss or gradient that is not finite, end the run.

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
        samples_per_prompt: int | None = None,
        minibatch_size: int = 128,
        ppo_epochs: int = 1,
        micro_batch_tokens: int = 16384,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = 3.0,
        aggregation: Aggregation | None = None,
        entropy_coef: float = 0.0,
        kl: KLSettings = KLSettings(),  # noqa: B008
        whiten: bool | None = None,
        drop_equal_groups: bool = False,
        gamma: float = 1.0,
        lam: float = 1.0,
        value_clip: float = 0.5,
        old_logprobs: Literal["recompute", "sampler"] = "recompute",
        critic_warmup: int = 0,
        policy_optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=5e-6),  # noqa: B008
        verifier: VerifierSettings = VerifierSettings(),  # noqa: B008
        reward: RewardSettings = RewardSettings(),  # noqa: B008
        max_concurrent: int = 256,
        gradient_checkpointing: bool = False,
        lora: LoraSettings | None = None,
        cpu_offload: bool = False,
        max_skipped_steps: int = 5,
    ) -> None:
        check_limits(
            "model",
            minibatch_size=minibatch_size,
            ppo_epochs=ppo_epochs,
            micro_batch_tokens=micro_batch_tokens,
            max_skipped_steps=max_skipped_steps,
        )
        if algorithm not in ALGORITHMS:
            raise InputError(f"model.algorithm {algorithm!r} is unknown; choose one of: {', '.join(ALGORITHMS)}")
        spec = ALGORITHMS[algorithm]
        samples = spec.samples_per_prompt if samples_per_prompt is None else samples_per_prompt
        check_algorithm(algorithm, samples, drop_equal_groups, critic_warmup, evaluation.values)
        if kl.coef and (kl.reference or policy).init == "random":
            raise InputError(
                "model.kl: a policy with init: random has no weights to stay close to; name a trained model in "
                "model.kl.reference"
            )
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
            lora,
            cpu_offload,
        )
        self.spec = spec
        self.samples = samples
        self.critic_source = critic or policy
        self.critic_optimizer = critic_optimizer
        self.minibatch_size = minibatch_size
        self.ppo_epochs = ppo_epochs
        self.clip: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
        self.aggregation: Aggregation = aggregation or spec.aggregation
        self.entropy_coef = entropy_coef
        self.kl = kl
        self.whiten = spec.whiten if whiten is None else whiten
        self.drop_equal_groups = drop_equal_groups
        self.gamma, self.lam = gamma, lam
        self.value_clip = value_clip
        self.old_logprobs = old_logprobs
        self.critic_warmup = critic_warmup
        self.max_skipped_steps = max_skipped_steps
        self.reward = reward
        self.custom_rewards = reward.custom

    def configure_model(self) -> None:
        """Load what the algorithm needs."""
        super().configure_model()
        self.policy.entropy_gradient = self.entropy_coef != 0

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """PPO epochs × minibatches × micro-batches over one iteration's rollouts."""
        self.last_rollout = batch
        optimizers = self.optimizers()
        found = cast(list[Any], optimizers if isinstance(optimizers, list) else [optimizers])
        policy_optimizer, critic_optimizer = found[0], found[1] if len(found) > 1 else None
        lrs = {"policy/lr": self.set_lr(policy_optimizer, self.policy_optimizer)}
        if critic_optimizer is not None:
            lrs["critic/lr"] = self.set_lr(critic_optimizer, self.critic_optimizer)
        steps: list[dict[str, Tensor]] = []
        with self.timed("update"), self.local_backward():
            plan = self._plan(batch)
            old_logprobs = self._old_logprobs(batch, plan)
            for i, minibatch in enumerate(plan):
                self.report_phase("updating", i, len(plan))
                self.leave_if_told(boundary=i == 0)
                step: dict[str, Tensor] = {}
                if critic_optimizer is not None:
                    step |= self._critic_gradient(batch, minibatch.critic)
                    step["critic/grad_norm"] = self.step_or_skip(
                        "critic",
                        critic_optimizer,
                        self.critic_optimizer,
                        step["critic/loss"],
                        partial(batch.contents, minibatch.critic),
                    )
                if self.iteration >= self.critic_warmup and (
                    terms := self._policy_gradient(batch, minibatch.policy, old_logprobs)
                ):
                    step |= terms
                    step["policy/grad_norm"] = self.step_or_skip(
                        "policy",
                        policy_optimizer,
                        self.policy_optimizer,
                        step["policy/loss"],
                        partial(batch.contents, minibatch.policy),
                    )
                steps.append(step)
            self.report_phase("updating", len(plan), len(plan))
        metrics = rollout_metrics(batch, old_logprobs, self.seconds) | step_metrics(steps) | lrs
        if self.critic is not None:
            metrics |= {**critic_metrics(batch), "critic/bad_values": self.bad_values}
        metrics |= reference_metrics(batch) if self.kl.coef else {}
        self.finish_iteration(metrics)

    def _plan(self, batch: RolloutBatch) -> list[Minibatch]:
        """This rank's rows of every micro-batch of every minibatch of every PPO epoch."""
        lengths, critic_lengths = batch.lengths(), self.critic_lengths(batch)
        kept = batch.kept.cpu()

        def cut(rows: Tensor, lengths: Tensor) -> list[Tensor]:
            return [rows[piece] for piece in micro_batches(lengths[rows], self.micro_batch_tokens)]

        return [
            Minibatch(cut(rows, critic_lengths), cut(rows[kept[rows]], lengths))
            for rows in self.minibatches(len(batch), self.ppo_epochs)
        ]

    @torch.no_grad()
    def _old_logprobs(self, batch: RolloutBatch, plan: list[Minibatch]) -> Tensor:
        """[B, T] log-probabilities under the weights before any update."""
        if self.old_logprobs == "sampler":
            return batch.logprobs
        old = batch.logprobs.clone()  # of responses that the policy does not learn from
        for minibatch in plan[: len(plan) // self.ppo_epochs]:
            self.read_logprobs(batch, minibatch.policy, self.policy, old)
        return old

    def _critic_gradient(self, batch: RolloutBatch, pieces: list[Tensor]) -> dict[str, Tensor]:
        """Accumulate the critic's gradient over a minibatch: the mean over its sequences, or over its tokens."""
        rows = torch.cat(pieces)
        by_token = self.spec.critic == "token"
        count = int(reduced(batch.response_lengths[rows].sum())) if by_token else self.minibatch_size
        run = partial(self._critic_passes, batch, count)
        return {"critic/loss": reduced(self.accumulate(self.critic, pieces, partial(self.critic_lengths, batch), run))}

    def _critic_passes(self, batch: RolloutBatch, count: int, pieces: list[Tensor]) -> Tensor:
        """Forward and backward over micro-batches; this rank's share of the loss."""
        assert self.spec.critic_loss is not None
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for rows in pieces:
            piece = batch.select(rows)
            outputs = self.critic(*self.critic_inputs(piece))
            mask = torch.ones_like(outputs, dtype=torch.bool)
            if self.spec.critic == "token":
                mask = response_mask(piece.response_lengths, outputs.shape[1])
            targets, before = piece.targets.to(outputs.dtype), piece.values.to(outputs.dtype)
            loss = masked_sum(self.spec.critic_loss(outputs, targets, before, self.value_clip), mask) / count
            self.manual_backward(loss)
            total += loss.detach()
        return total

    def _policy_gradient(self, batch: RolloutBatch, pieces: list[Tensor], old: Tensor) -> dict[str, Tensor]:
        """Accumulate the policy's gradient over a minibatch; counts are those of the whole minibatch.

        Returns:
            scalars by name; nothing where no rank has a response to learn from.
        """
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
        counted = batch.response_lengths[rows].sum()
        sequences, tokens = reduced(torch.stack([torch.full_like(counted, len(rows)), counted])).tolist()
        if not sequences:
            return {}
        run = partial(self._policy_passes, batch, old, sequences, tokens)
        step, low, high = self.accumulate(self.policy, pieces, batch.lengths, run)
        step = dict(zip(step, reduced(torch.stack(list(step.values()))), strict=True))
        step["policy/ratio_min"] = reduced(torch.stack(low).min(), dist.ReduceOp.MIN)
        step["policy/ratio_max"] = reduced(torch.stack(high).max(), dist.ReduceOp.MAX)
        return step

    def _policy_passes(
        self, batch: RolloutBatch, old: Tensor, sequences: int, tokens: int, pieces: list[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """Forward and backward over micro-batches; this rank's shares of the scalars, and extremes of the ratio."""
        names = (
            "policy/loss",
            "policy/entropy",
            "policy/approx_kl",
            "policy/clip_fraction",
            "policy/dual_clip_fraction",
        )
        step = {name: torch.zeros((), device=self.device) for name in names}
        low, high = [torch.full((), torch.inf, device=self.device)], [torch.zeros((), device=self.device)]
        for rows in pieces:
            piece = batch.select(rows)
            terms = self.terms_of(piece)
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
                sequences=sequences,
                tokens=tokens,
                norm_length=self.sampling.max_new_tokens,
            )
            per_token = surrogate.loss - self.entropy_coef * terms.entropy
            if self.kl.coef and self.kl.where == "loss":
                reference = piece.reference.to(terms.logprobs.dtype)
                per_token = per_token + self.kl.coef * kl_penalty(terms.logprobs, reference, self.kl.estimator)
            loss = masked_sum(per_token * weights, mask)
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
        return step, low, high


def check_algorithm(
    algorithm: str, samples: int, drop_equal_groups: bool, critic_warmup: int, values: bool = False
) -> None:
    """Whether an algorithm can be trained with these settings.

    Raises:
        InputError: too few samples for it, groups of one, or a warm-up or values of a critic that it does not have.
    """
    spec = ALGORITHMS[algorithm]
    least = 2 if spec.samples_per_prompt > 1 else 1
    if samples < least:
        raise InputError(f"model.samples_per_prompt is {samples}; {spec.title} needs at least {least}")
    if drop_equal_groups and samples < 2:
        raise InputError(
            "model.drop_equal_groups: with one response per prompt every group is equal, and all would be dropped; "
            "set model.samples_per_prompt to 2 or more, or leave it out"
        )
    if critic_warmup and spec.critic == "none":
        raise InputError(f"model.critic_warmup is {critic_warmup}, but {spec.title} has no critic; leave it out")
    if values and spec.critic == "none":
        raise InputError(f"model.evaluation.values: {spec.title} has no critic; leave it out")
