"""Metrics of an iteration over all ranks: of its rollouts and of its optimizer steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.algorithms.losses import LOG_RATIO_LIMIT, PolicyTerms, approx_kl, sequence_log_ratio
from sppo_lit.algorithms.masking import masked_moments, masked_sum, response_mask
from sppo_lit.distributed.collectives import gathered, reduced
from sppo_lit.rewards.custom import reward_names
from sppo_lit.training.metrics import brier, explained_variance
from sppo_lit.training.updater import GREATEST, LEAST, Terms
from sppo_lit.types import Reason, Rollouts, TrainingBatch

CRITIC_TERMS = ("critic/loss",)
POLICY_TERMS = (
    "policy/loss",
    "policy/entropy",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/dual_clip_fraction",
    "policy/ratio_min",
    "policy/ratio_max",
)
"""Names of the terms of an update; see `policy_terms`."""

SEQUENCE_CAP = 3.0
"""Ratio of a response above which `rollout/beyond_cap` counts it where the correction has no cap of its own."""

PATIENCE = 3
"""Iterations without a single correct response after which a run says so."""

CAUSES: Mapping[str, tuple[str, str]] = {
    "no_answer": (
        "without a box",
        "teach the policy the form as recipes/gsm8k/warmup.yaml does, or show it in data.prompt.system or examples",
    ),
    "truncated": ("cut off before an answer", "raise model.sampling.max_new_tokens"),
    "wrong": ("wrong", "use easier problems, or warm the policy up on worked solutions"),
    "unparsable": ("unreadable", "teach the policy the form as recipes/gsm8k/warmup.yaml does"),
    "timeout": ("judged for too long", "raise model.verifier.deadline"),
    "gold_unparsable": ("with an unreadable gold answer", "'sppo audit' lists these"),
}
"""Reason of a verdict → what is said of such responses, and what helps where most are of them."""


def policy_terms(
    loss: Tensor, surrogate: PolicyTerms, logprobs: Tensor, entropy: Tensor, before: Tensor, mask: Tensor, tokens: int
) -> Terms:
    """The loss of a micro-batch, with what else is known of its step, as shares of a minibatch of `tokens`.

    Args:
        loss: scalar with a gradient.
        surrogate: the policy loss of its tokens.
        logprobs: [B, T], under the trained weights.
        entropy: [B, T].
        before: [B, T], log-probabilities under the weights before any update.
        mask: [B, T] bool.
        tokens: of the whole minibatch over all ranks.
    """
    with torch.no_grad():
        ratio = surrogate.ratio[mask]
        return {
            "policy/loss": loss,
            "policy/entropy": masked_sum(entropy, mask) / tokens,
            "policy/approx_kl": masked_sum(approx_kl(logprobs, before), mask) / tokens,
            "policy/clip_fraction": masked_sum(surrogate.clipped.float(), mask) / tokens,
            "policy/dual_clip_fraction": masked_sum(surrogate.dual_clipped.float(), mask) / tokens,
            "policy/ratio_min": ratio.min(),
            "policy/ratio_max": ratio.max(),
        }


def rollout_metrics(
    batch: TrainingBatch,
    old_logprobs: Tensor,
    seconds: float,
    values_of: str,
    iteration: int,
    sequence_cap: float | None = None,
) -> dict[str, float]:
    """Metrics of rollouts and advantages over all ranks, before any update.

    Args:
        batch: batch of this rank.
        old_logprobs: [B, T] float32, under the weights before any update.
        seconds: wall-clock time of sampling on this rank.
        values_of: where its values are from, "critic" or "tracker"; empty without values.
        iteration: iterations completed before this one.
        sequence_cap: cap of the ratio of whole responses; None counts those beyond `SEQUENCE_CAP`.
    """
    mask = response_mask(batch.response_lengths, batch.response_ids.shape[1])
    slowest = reduced(batch.logprobs.new_tensor(seconds), dist.ReduceOp.MAX)
    names = get_args(Reason)
    reasons = Counter(s.verdict.reason for s in batch.scored)
    truncated = sum(not s.finished for s in batch.scored)
    counts = reduced(slowest.new_tensor([*(reasons[name] for name in names), truncated], dtype=torch.int64))
    rewards, labels, lengths = gathered(batch.rewards), gathered(batch.labels), gathered(batch.response_lengths).float()
    kept = gathered(batch.loss_mask.any(dim=1).to(torch.int32)).float()
    *shares, truncation = (counts.float() / len(rewards)).tolist()
    sampled = _sampled(batch)
    return {
        "rollout/reward": float(rewards.mean()),
        "rollout/accuracy": float(labels.mean()),
        "rollout/response_length": float(lengths.mean()),
        "rollout/truncation_rate": truncation,
        "rollout/tokens_per_second": sampled["rollout/sampled_tokens"] / max(float(slowest), 1e-9),
        "rollout/kept": float(kept.mean()),
        **{f"rollout/reason/{name}": share for name, share in zip(names, shares, strict=True)},
        **_custom_rewards(batch),
        **mismatch_metrics(batch, old_logprobs, mask, sequence_cap or SEQUENCE_CAP),
        "rollout/staleness": iteration - float(gathered(batch.versions).float().mean()),
        **_spread(batch.advantages, mask),
        **sampled,
        **(_value_metrics(batch, values_of) if values_of else {}),
        **(_reference_metrics(batch, batch.reference, mask) if batch.reference is not None else {}),
    }


def no_reward(shares: Mapping[str, float]) -> str:
    """Why no response is correct and what to do, as the end of a line.

    Args:
        shares: reason of a verdict → share of the responses, from 0 to 1.
    """
    causes = sorted((name for name in CAUSES if shares.get(name)), key=lambda name: -shares[name])
    if not causes:  # a verifier of one's own, with reasons of its own
        return "nothing can be learned from it; see the completions"
    counted = ", ".join(f"{shares[name]:.0%} {CAUSES[name][0]}" for name in causes)
    return f"nothing can be learned from it ({counted}): {CAUSES[causes[0]][1]}"


def mismatch_metrics(batch: Rollouts, old_logprobs: Tensor, mask: Tensor, sequence_cap: float) -> dict[str, float]:
    """How far the distribution that sampled is from the trainer's, over all ranks.

    `rollout/logprob_gap` and `rollout/logprob_gap_max` are mean and maximum of |log π_old − log π_sampler| over tokens,
    `rollout/sampler_kl` estimates KL(π_sampler ‖ π_old) per token (k3), `rollout/effective_samples` is the effective
    sample size of the tokens' ratios w, (Σ w)² / (n Σ w²), as a share of their number, and `rollout/beyond_cap` is the
    share of responses whose ratio exceeds the cap.

    Args:
        batch: rollouts of this rank.
        old_logprobs: [B, T] float32, under the weights before any update.
        mask: [B, T] bool, the tokens of the responses.
        sequence_cap: cap of the ratio of whole responses.
    """
    gap = torch.where(mask, old_logprobs - batch.logprobs, 0.0)
    ratio = gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    beyond = sequence_log_ratio(old_logprobs, batch.logprobs, mask) > math.log(sequence_cap)
    sums = [
        gap.abs().sum(),
        masked_sum(approx_kl(old_logprobs, batch.logprobs), mask),
        masked_sum(ratio, mask),
        masked_sum(ratio.square(), mask),
        mask.sum().to(gap.dtype),
        beyond.sum().to(gap.dtype),
        gap.new_tensor(len(batch)),
    ]
    total, kl, first, second, tokens, masked, responses = reduced(torch.stack(sums)).tolist()
    return {
        "rollout/logprob_gap": total / tokens,
        "rollout/logprob_gap_max": float(reduced(gap.abs().max(), dist.ReduceOp.MAX)),
        "rollout/sampler_kl": kl / tokens,
        "rollout/effective_samples": first**2 / (tokens * second),
        "rollout/beyond_cap": masked / responses,
    }


def _custom_rewards(batch: TrainingBatch) -> dict[str, float]:
    """Of each custom reward its mean over all responses, unweighted, 0 where it failed, and how often it failed."""
    metrics: dict[str, float] = {}
    for spec, name in reward_names(list(batch.custom_rewards)).items():
        values = batch.rewards.new_tensor(batch.custom_rewards[spec])
        failed = values.isnan()
        total, failures, count = reduced(
            torch.stack([values.nan_to_num(0.0).sum(), failed.sum(), values.new_tensor(len(values))])
        ).tolist()
        metrics[f"rollout/reward/{name}"] = total / count
        metrics[f"rollout/reward_failures/{name}"] = failures
    return metrics


def _sampled(batch: TrainingBatch) -> dict[str, float]:
    """Responses and tokens sampled for the batch, greedy responses included."""
    counts = batch.response_lengths.new_tensor([batch.sampled_sequences, batch.sampled_tokens])
    sequences, tokens = reduced(counts).tolist()
    return {"rollout/sampled_sequences": sequences, "rollout/sampled_tokens": tokens}


def _spread(advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the advantages: over responses, or over tokens for a token-level estimator."""
    weights = mask if advantages.ndim == 2 else torch.ones_like(advantages, dtype=torch.bool)
    mean, squares, count = masked_moments(advantages, weights, reduced)
    return {"advantage/mean": float(mean), "advantage/std": float((squares / count).sqrt())}


def _value_metrics(batch: TrainingBatch, source: str) -> dict[str, float]:
    """How well V before the update predicted the verdicts.

    Of a token-level critic V at the prompt is used, as of a scalar one; `critic/brier_at_end` is of its prediction
    before the last token.
    """
    labels = gathered(batch.labels)
    by_token = batch.values.ndim == 2
    values = gathered(batch.values[:, 0].contiguous() if by_token else batch.values)
    metrics = {
        f"{source}/bad_values": float(batch.bad_values),
        f"{source}/value_mean": float(values.mean()),
        f"{source}/brier": float(brier(values, labels)),
        f"{source}/explained_variance": float(explained_variance(values, labels)),
    }
    if by_token:
        last = batch.values.gather(1, batch.response_lengths[:, None] - 1).squeeze(1)
        metrics["critic/brier_at_end"] = float(brier(gathered(last), labels))
    return metrics


def _reference_metrics(batch: TrainingBatch, reference: Tensor, mask: Tensor) -> dict[str, float]:
    """KL(π ‖ π_ref) per token of the sampling policy (k3)."""
    kl = reduced(masked_sum(approx_kl(reference, batch.logprobs), mask))
    return {"rollout/kl_reference": float(kl / reduced(mask.sum()))}


def step_metrics(steps: Sequence[Terms]) -> dict[str, float]:
    """Aggregate the terms of an iteration's optimizer steps: extremes of the ratio, means of everything else.

    `policy/first_ratio_deviation` is max |r − 1| of the first minibatch; unless it is 0, π and π_old differ.
    Skipped steps are excluded from the mean gradient norm and counted in `*/skipped_steps`.
    """
    metrics: dict[str, float] = {}
    names = sorted({name for step in steps for name in step})
    for name in names:
        values = torch.stack([step[name].float() for step in steps if name in step])
        if name.endswith("grad_norm"):
            finite = values.isfinite()
            metrics[name.replace("grad_norm", "skipped_steps")] = float((~finite).sum())
            values = values[finite] if finite.any() else values
        reduce = torch.min if name in LEAST else torch.max if name in GREATEST else torch.mean
        metrics[name] = float(reduce(values))
    if first := next((step for step in steps if "policy/ratio_max" in step), None):
        metrics["policy/first_ratio_deviation"] = max(
            float(first["policy/ratio_max"]) - 1, 1 - float(first["policy/ratio_min"])
        )
    return metrics
