"""Advantages and targets of an iteration, from its rollouts and values (paper, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sppo_lit.algorithms.advantages import Outcomes, equal_groups, gae, whiten
from sppo_lit.algorithms.masking import response_mask
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.distributed.collectives import reduced
from sppo_lit.settings import AdvantageSettings
from sppo_lit.types import Rollouts


class Estimates(NamedTuple):
    """What the update learns from; see `TrainingBatch`.

    Attributes:
        advantages: [B] float32; [B, T] of a token-level estimator, zeros on padding.
        targets: in the shape of the values, the critic's targets.
        loss_mask: [B, T] bool, the tokens that the policy is trained on.
    """

    advantages: Tensor
    targets: Tensor
    loss_mask: Tensor


def estimates(
    spec: AlgorithmSpec,
    settings: AdvantageSettings,
    samples: int,
    rollouts: Rollouts,
    values: Tensor,
    usable: Tensor,
    costs: Tensor | None = None,
    critic_costs: Tensor | None = None,
) -> Estimates:
    """Advantages by an algorithm's row and what a recipe changes of it.

    Args:
        spec: the algorithm.
        settings: how rewards become advantages.
        samples: N, responses to each problem, which are adjacent.
        rollouts: B rollouts of this rank.
        values: V before any update, [B], or [B, T] of a token-level critic; zeros without one.
        usable: [B] bool, whose values are finite; the policy is not trained on the others.
        costs: [B, T] float32 taken from each token's reward, zeros on padding; None for nothing.
        critic_costs: the same of the returns that a token-level critic learns.
    """
    lengths = rollouts.response_lengths
    mask = response_mask(lengths, rollouts.response_ids.shape[1])
    own = spec.lam(lengths) if callable(spec.lam) else spec.lam
    lam = own if settings.lam is None else settings.lam
    outcomes = Outcomes(
        rollouts.rewards,
        values,
        lengths,
        samples,
        rollouts.greedy_rewards,
        costs,
        settings.gamma,
        lam,
        settings.value_weight,
        reduced,
    )
    advantages = spec.advantage(outcomes)
    if spec.whiten if settings.whiten is None else settings.whiten:
        advantages = whiten(advantages, usable if advantages.ndim == 1 else mask & usable[:, None], reduced)
    targets = rollouts.labels
    if values.ndim == 2:
        of_critic = spec.critic_lam if settings.critic_lam is None else settings.critic_lam
        critic_lam = lam if of_critic is None else of_critic
        errors = gae(rollouts.labels, values, lengths, gamma=settings.gamma, lam=critic_lam, costs=critic_costs)
        targets = torch.where(mask, errors + values, 0.0)
    trained = usable
    if settings.drop_equal_groups:
        paid = outcomes._replace(costs=critic_costs).totals  # without the KL penalty, another for every response
        trained = usable & ~equal_groups(paid, samples)
    return Estimates(advantages, targets, mask & trained[:, None])
