"""Policy and critic losses: typed, free of any framework, float32 (or float64 if they are given float64)."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sppo_lit.types import KLEstimator

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


class PolicyLoss(Protocol):
    """A column of the table of algorithms: the policy's loss per token."""

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        clip_low: float,
        clip_high: float,
        dual_clip: float | None,
    ) -> PolicyTerms:
        """See `clipped_surrogate` for shapes."""


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
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
        mask: [B, T] bool, the tokens of the loss; not needed where every token has a ratio of its own.
        clip_low: ε below 1.
        clip_high: ε above 1 (larger than `clip_low` is DAPO's clip-higher).
        dual_clip: c > 1, or None to switch it off.
    """
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return _clipped(log_ratio.exp(), advantages, clip_low, clip_high, dual_clip)


def sequence_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = 3.0,
) -> PolicyTerms:
    """The clipped surrogate with one ratio for the whole response (GSPO, arXiv 2507.18071, equations 5 to 7).

    s = exp(mean over its tokens of log π − log π_old), the same at every token. Its gradient is spread over the tokens
    as in equation 14 (GSPO-token), so that advantages may also vary by token; with `seq-mean-token-mean` and one
    advantage for each response the loss is that of equation 5.

    Args:
        logprobs: [B, T], log π(token) at the sampling temperature, with gradient. Padding may hold anything finite.
        old_logprobs: [B, T], the same under the weights that sampled.
        advantages: [B] (broadcast over the response) or [B, T].
        mask: [B, T] bool, the tokens of the loss, over which the mean is taken.
        clip_low: ε below 1 (paper: 3e-4).
        clip_high: ε above 1 (paper: 4e-4).
        dual_clip: c > 1, or None to switch it off.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).detach()
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratio = (mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT) + logprobs - logprobs.detach()).exp()
    return _clipped(ratio, advantages, clip_low, clip_high, dual_clip)


def _clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> PolicyTerms:
    """The surrogate of ratios [B, T] and advantages [B] or [B, T]."""
    if advantages.ndim == 1:
        advantages = advantages[:, None]
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


def sequence_log_ratio(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log of π_old / π_sampler of whole responses: the sum over their tokens, [B].

    Args:
        old_logprobs: [B, T], the trainer's log-probabilities under the weights before any update.
        sampler_logprobs: [B, T], those under which the tokens were sampled.
        mask: [B, T] bool, the tokens of the response.
    """
    return torch.where(mask, old_logprobs - sampler_logprobs, 0.0).sum(dim=1)


def importance_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    token_cap: float | None = 2.0,
    sequence_cap: float | None = 3.0,
) -> Tensor:
    """Weights of the tokens' policy loss for responses that another distribution than π_old sampled.

    min(π_old / π_sampler, token_cap) at every token (truncated importance sampling: Ionides 2008; Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"), and 0 in a response whose whole ratio,
    the product over its tokens, exceeds `sequence_cap` (TRL's sequence mask).

    Args:
        old_logprobs: [B, T], the trainer's log-probabilities under the weights before any update.
        sampler_logprobs: [B, T], those under which the tokens were sampled.
        mask: [B, T] bool, the tokens of the response; padding may hold anything.
        token_cap: largest weight of a token; None gives every token the weight 1.
        sequence_cap: largest ratio of a response that is learned from; None for no limit.

    Returns:
        [B, T], without gradient, 1 on padding of responses that are kept.
    """
    old, sampled = old_logprobs.detach(), sampler_logprobs.detach()
    log_ratio = torch.where(mask, old - sampled, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    weights = torch.ones_like(log_ratio) if token_cap is None else log_ratio.exp().clamp(max=token_cap)
    if sequence_cap is None:
        return weights
    beyond = sequence_log_ratio(old, sampled, mask) > math.log(sequence_cap)
    return torch.where(beyond[:, None], 0.0, weights)


def identity(outputs: Tensor) -> Tensor:
    """V is the critic's output itself; elementwise."""
    return outputs


def critic_bce(outputs: Tensor, targets: Tensor, old_values: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Binary cross-entropy of a critic against the verdict (the paper's critic loss), element by element.

    Args:
        outputs: [B] or [B, T], the critic's logits; V = sigmoid(logit).
        targets: of the same shape, in [0, 1]: the verifier's reward, never a shaped one, or a return made of it.
        old_values: not used; in the signature for the table of algorithms.
        clip: not used.

    Returns:
        of the same shape, to be averaged over the minibatch.
    """
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


def critic_clipped_mse(outputs: Tensor, targets: Tensor, old_values: Tensor, clip: float) -> Tensor:
    """PPO's clipped squared error, ½ max((V − G)², (clip(V, V_old ± clip) − G)²), element by element.

    Args:
        outputs: [B] or [B, T], V.
        targets: of the same shape, G, what V is to predict.
        old_values: of the same shape, V before any update.
        clip: how far V may move from `old_values` at a gain (paper: 0.5).

    Returns:
        of the same shape, to be averaged over the minibatch.
    """
    near = old_values + (outputs - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((outputs - targets).square(), (near - targets).square())


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Low-variance estimate of KL(π_old ‖ π) per token: (r − 1) − log r, [B, T], never negative (Schulman's k3)."""
    log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp() - 1 - log_ratio


def kl_penalty(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate of KL(π ‖ π_ref) from tokens that π sampled (Schulman 2020, "Approximating KL divergence").

    Args:
        logprobs: [B, T], log π, with gradient where it is part of the loss.
        reference: [B, T], log π_ref at the same temperature.
        estimator: "k1" log π − log π_ref (without bias, also negative); "k2" half its square; "k3" without bias and
            never negative.

    Returns:
        [B, T].
    """
    log_ratio = (logprobs - reference).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return log_ratio
    return 0.5 * log_ratio.square() if estimator == "k2" else approx_kl(reference, logprobs)
