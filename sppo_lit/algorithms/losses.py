"""Policy and critic losses: typed, free of any framework, float32 (or float64 if they are given float64)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""The log-ratio is clamped to ± this before it is exponentiated: one absurd token must not make the loss infinite."""


class PolicyTerms(NamedTuple):
    """Per-token terms of the policy loss, each [B, T].

    Attributes:
        loss: the clipped surrogate, to be weighted and summed (`masking.token_weights`).
        ratio: r = π/π_old.
        clipped: bool, the clip cut the gradient (r left the trust region in the direction the advantage pushes).
        dual_clipped: bool, the dual clip bounded the loss of a negative advantage.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    dual_clipped: Tensor


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> PolicyTerms:
    """PPO's clipped surrogate with a token-level ratio (Schulman et al. 2017, eq. 7; the paper's policy loss).

    max(−A·r, −A·clip(r, 1−clip_low, 1+clip_high)); where A < 0 it is bounded by −A·dual_clip (Ye et al. 2020, eq. 5).

    Args:
        logprobs: [B, T], log π(token) at the sampling temperature, with gradient. Padding may hold anything finite.
        old_logprobs: [B, T], the same under the weights that sampled.
        advantages: [B] (broadcast over the response) or [B, T].
        clip_low: ε below 1.
        clip_high: ε above 1 (larger than `clip_low` is DAPO's clip-higher).
        dual_clip: c > 1, or None to switch it off.
    """
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, bounded)
    clipped = bounded > unclipped
    dual_clipped = torch.zeros_like(clipped)
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        dual_clipped = (advantages < 0) & (loss > ceiling)
        loss = torch.where(advantages < 0, torch.minimum(loss, ceiling), loss)
    return PolicyTerms(loss, ratio, clipped, dual_clipped)


def critic_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the scalar critic against the verdict (the paper's critic loss), per sequence.

    Args:
        logits: [B], the critic's logit per prompt; V = sigmoid(logit).
        labels: [B] in [0, 1], the verifier's reward, never a shaped one.

    Returns:
        [B], to be averaged over the sequences of the minibatch.
    """
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Low-variance estimate of KL(π_old ‖ π) per token: (r − 1) − log r, [B, T], never negative (Schulman's k3)."""
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp() - 1 - log_ratio
