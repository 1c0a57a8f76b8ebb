"""From logits to tokens: greedy, or inverse-CDF sampling with optional top-k / top-p truncation."""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_lit.types import Sampling


def truncate(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Zero the weights outside the top k, then those outside the nucleus.

    The nucleus is the smallest set of most likely tokens whose mass, after top-k, is at least `top_p` (never empty).

    Args:
        weights: [N, V] non-negative, unnormalised probabilities.
        top_k: number of tokens kept; 0 keeps all.
        top_p: mass kept, in (0, 1]; 1 keeps all.

    Returns:
        [N, V], a copy of `weights` with zeros.
    """
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    if 0 < top_k < ordered.shape[-1]:
        ordered[:, top_k:] = 0
    if top_p < 1:
        mass = ordered.cumsum(-1, dtype=_cdf_dtype(weights))
        before = mass - ordered
        ordered[before >= top_p * mass[:, -1:]] = 0
    return torch.zeros_like(weights).scatter_(-1, order, ordered)


def draw(logits: Tensor, u: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: [N, V], any floating dtype; at least one finite per row.
        u: [N] float64 in [0, 1), one uniform per row; None when greedy.
        sampling: temperature and truncation.

    Returns:
        Tokens [N] int64, never one with zero probability, and their log-probabilities [N] float32 under
        softmax(logits / temperature) before truncation (temperature 1 when greedy).
    """
    logits = logits.float()
    if not sampling.greedy and sampling.temperature != 1:
        logits = logits / sampling.temperature
    shift, best = logits.max(dim=-1)
    weights = (logits - shift[:, None]).exp_()
    cdf = weights.cumsum(-1, dtype=_cdf_dtype(logits))
    total = cdf[:, -1]
    if sampling.greedy:
        return best, -total.log().float()
    assert u is not None
    log_total = total.log()
    if sampling.top_k > 0 or sampling.top_p < 1:
        cdf = truncate(weights, sampling.top_k, sampling.top_p).cumsum(-1, dtype=cdf.dtype)
        total = cdf[:, -1]
    # The first token whose cdf exceeds u * total has positive weight, provided that u * total < total; the minimum
    # guards against rounding.
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target[:, None], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)  # out of range only if logits are NaN
    return tokens[:, 0], (logits.gather(1, tokens)[:, 0] - shift - log_total).float()


def _cdf_dtype(tensor: Tensor) -> torch.dtype:
    """float64, except on MPS, which lacks it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
