"""Metrics of an iteration over all ranks: of its rollouts and of its optimizer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_lit.algorithms.losses import approx_kl
from sppo_lit.algorithms.masking import masked_moments, masked_sum, response_mask
from sppo_lit.distributed.collectives import gathered, reduced
from sppo_lit.training.metrics import brier, explained_variance
from sppo_lit.training.updater import GREATEST, LEAST, Terms
from sppo_lit.types import Reason, TrainingBatch


def rollout_metrics(batch: TrainingBatch, old_logprobs: Tensor, seconds: float, critic: bool) -> dict[str, float]:
    """Metrics of rollouts and advantages over all ranks, before any update.

    Args:
        batch: batch of this rank.
        old_logprobs: [B, T] float32, under the weights before any update.
        seconds: wall-clock time of sampling on this rank.
        critic: whether the batch has values of a critic.
    """
    mask = response_mask(batch.response_lengths, batch.response_ids.shape[1])
    gap = reduced(masked_sum((batch.logprobs - old_logprobs).abs(), mask))
    slowest = reduced(gap.new_tensor(seconds), dist.ReduceOp.MAX)
    names = get_args(Reason)
    reasons = Counter(s.verdict.reason for s in batch.scored)
    truncated = sum(not s.finished for s in batch.scored)
    counts = reduced(gap.new_tensor([*(reasons[name] for name in names), truncated], dtype=torch.int64))
    rewards, labels, lengths = gathered(batch.rewards), gathered(batch.labels), gathered(batch.response_lengths).float()
    kept = gathered(batch.loss_mask.any(dim=1).to(torch.int32)).float()
    *shares, truncation = (counts / len(rewards)).tolist()
    return {
        "rollout/reward": float(rewards.mean()),
        "rollout/accuracy": float(labels.mean()),
        "rollout/response_length": float(lengths.mean()),
        "rollout/truncation_rate": truncation,
        "rollout/tokens_per_second": float(lengths.sum() / slowest.clamp(min=1e-9)),
        "rollout/logprob_gap": float(gap / lengths.sum()),
        "rollout/kept": float(kept.mean()),
        **{f"rollout/reason/{name}": share for name, share in zip(names, shares, strict=True)},
        **_spread(batch.advantages, mask),
        **_sampled(batch),
        **(_critic_metrics(batch) if critic else {}),
        **(_reference_metrics(batch, batch.reference, mask) if batch.reference is not None else {}),
    }


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


def _critic_metrics(batch: TrainingBatch) -> dict[str, float]:
    """How well V before the update predicted the verdicts.

    Of a token-level critic V at the prompt is used, as of a scalar one; `critic/brier_at_end` is of its prediction
    before the last token.
    """
    labels = gathered(batch.labels)
    by_token = batch.values.ndim == 2
    values = gathered(batch.values[:, 0].contiguous() if by_token else batch.values)
    metrics = {
        "critic/bad_values": float(batch.bad_values),
        "critic/value_mean": float(values.mean()),
        "critic/brier": float(brier(values, labels)),
        "critic/explained_variance": float(explained_variance(values, labels)),
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
