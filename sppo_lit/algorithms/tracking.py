"""A memory of prompts as baseline: the success rate of each, forgotten as the policy moves (SPO, arXiv 2509.13232)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

HALF_LIFE = 0.06
"""KL divergence of the policy, in nats per token, over which an observation loses half of its weight."""

RHO_LEAST, RHO_MOST = 0.875, 0.96
"""Range of ρ, the factor by which a prompt's observations are forgotten between two visits."""

FIRST_WEIGHT = 1 / (1 - RHO_LEAST)
"""Pseudo-observations of a prompt that was never seen: as many as a tracker at the least ρ remembers."""


class BaselineMemory(Protocol):
    """State that a baseline keeps over the iterations of a run, the same on every rank and saved in checkpoints."""

    def read(self, prompts: Tensor) -> Tensor:
        """The expected reward of each prompt before the iteration's rewards are known, [B] float32 on their device."""

    def update(self, prompts: Tensor, rewards: Tensor, kl: float) -> dict[str, float]:
        """Take in a finished iteration, that of all ranks; returns metrics by name."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""


def forgetting(kl: Tensor) -> Tensor:
    """ρ = 2^(−D / 0.06), clipped to [0.875, 0.96].

    Args:
        kl: [K], D, KL divergence of the policy since each prompt was last seen, in nats per token.

    Returns:
        [K].
    """
    return (2 ** (-kl / HALF_LIFE)).clamp(RHO_LEAST, RHO_MOST)


def iteration_kl(measured: Sequence[float]) -> float:
    """KL divergence per token between the policies before and after an iteration, without a further forward pass.

    The i-th of M optimizer steps measures the divergence of the i − 1 steps before it, so the last one is missing; it
    is taken to add as much as the mean of the others, as divergences are also added up over iterations.

    Args:
        measured: `policy/approx_kl` of each step; those that are not finite are left out.

    Returns:
        0 where nothing was measured: with a single step the policy has not moved yet when it is.
    """
    steps = [(i, kl) for i, kl in enumerate(measured) if i and math.isfinite(kl)]
    if not steps:
        return 0.0
    last, kl = steps[-1]
    return max(kl, 0.0) * len(measured) / last


class PromptTracker:
    """For each prompt α successes and β failures, discounted: v = α / (α + β).

    When a prompt has been answered with rewards R, α ← ρα + ΣR and β ← ρβ + Σ(1 − R). A prompt that was never seen has
    the mean v of all others (1/2 at first) with a weight of `FIRST_WEIGHT` observations. The tensors are sorted by
    prompt, so that the number of ranks changes nothing.
    """

    def __init__(self) -> None:
        self._prompts = torch.empty(0, dtype=torch.int64)
        self._alpha, self._beta, self._seen_at = (torch.empty(0, dtype=torch.float64) for _ in range(3))
        self._moved = torch.zeros((), dtype=torch.float64)  # KL since the start of the run

    def read(self, prompts: Tensor) -> Tensor:
        """The value v of each prompt before the iteration's rewards are taken in.

        Args:
            prompts: [B] int64, a key of each response's prompt.

        Returns:
            [B] float32, on the same device.
        """
        place, known = self._places(prompts.cpu())
        alpha, beta = self._pair(place, known)
        return (alpha / (alpha + beta)).to(prompts.device, torch.float32)

    def update(self, prompts: Tensor, rewards: Tensor, kl: float) -> dict[str, float]:
        """Take in an iteration's rewards.

        Args:
            prompts: [B] int64, of the responses of all ranks.
            rewards: [B], in [0, 1].
            kl: divergence of the policy in this iteration, `iteration_kl`.

        Returns:
            ``tracker/prompts`` tracked now, share of the iteration's prompts ``tracker/seen`` before, and mean
            ``tracker/rho`` of those (if any).
        """
        unique, group = prompts.cpu().unique(sorted=True, return_inverse=True)
        place, known = self._places(unique)
        alpha, beta = self._pair(place, known)
        successes, count = torch.zeros_like(alpha), torch.zeros_like(alpha)
        successes.index_add_(0, group, rewards.cpu().double())
        count.index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        seen_at = torch.where(known, self._seen_at[place], self._moved) if len(self._seen_at) else self._moved
        rho = forgetting((self._moved - seen_at).expand_as(alpha))
        alpha, beta = rho * alpha + successes, rho * beta + count - successes
        kept = ~torch.isin(self._prompts, unique)
        merged = torch.cat([self._prompts[kept], unique])
        order = merged.argsort()
        self._prompts = merged[order]
        self._alpha = torch.cat([self._alpha[kept], alpha])[order]
        self._beta = torch.cat([self._beta[kept], beta])[order]
        self._seen_at = torch.cat([self._seen_at[kept], self._moved.expand_as(alpha)])[order]
        self._moved = self._moved + kl  # the responses were sampled before this iteration's steps
        metrics = {"tracker/prompts": float(len(self._prompts)), "tracker/seen": float(known.double().mean())}
        return {**metrics, "tracker/rho": float(rho[known].mean())} if known.any() else metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Prompts [K] int64; α, β and the divergence until their last visit [K], and until now, float64."""
        return {
            "prompts": self._prompts,
            "alpha": self._alpha,
            "beta": self._beta,
            "seen_at": self._seen_at,
            "moved": self._moved,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, [K] and scalar tensors."""
        self._prompts, self._alpha, self._beta = state["prompts"], state["alpha"], state["beta"]
        self._seen_at, self._moved = state["seen_at"], state["moved"]

    def _places(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Index of each prompt, and whether it is known; the index of others means nothing."""
        if not len(self._prompts):
            return torch.zeros_like(prompts), torch.zeros_like(prompts, dtype=torch.bool)
        place = torch.searchsorted(self._prompts, prompts).clamp(max=len(self._prompts) - 1)
        return place, self._prompts[place] == prompts

    def _pair(self, place: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """α and β, float64."""
        if not len(self._prompts):
            half = torch.full(place.shape, FIRST_WEIGHT / 2, dtype=torch.float64)
            return half, half.clone()
        first = FIRST_WEIGHT * (self._alpha / (self._alpha + self._beta)).mean()
        alpha, beta = self._alpha[place], self._beta[place]
        return torch.where(known, alpha, first), torch.where(known, beta, FIRST_WEIGHT - first)
