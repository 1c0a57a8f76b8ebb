"""Advantage estimators: how much better a response, or a token of it, did than was to be expected.

Sequence-Level PPO treats the whole response as one action of a contextual bandit (paper, section 3): context = the
prompt s_p, action = the response, horizon 1. There is nothing to discount and nothing to whiten. The baselines of the
paper differ from it in where the expectation comes from: other samples of the same prompt, a greedy one, or a critic
that reads along. Controls that the paper lacks take it from the iteration's other responses, or from a memory of each
prompt (`tracking`).

B responses; those of one prompt lie next to each other, N of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sppo_lit.algorithms.masking import masked_moments, response_mask
from sppo_lit.errors import InputError


class Outcomes(NamedTuple):
    """What an iteration's rollouts brought, as the estimators need it.

    Attributes:
        rewards: [B] float32, paid at the end of the response.
        values: predictions before any update, of the critic or of a memory of prompts: [B], or [B, T] of a token-level
            critic; [B] zeros without.
        lengths: [B] int64, response lengths.
        samples: N, responses of each prompt.
        greedy: [B] float32, reward of the greedy response to the same prompt; zeros where none was taken.
        costs: [B, T] float32, what each token costs (KL to the reference, in the reward), zeros on padding; or None.
        gamma: discount per token, of token-level estimators.
        lam: λ of generalised advantage estimation, one number or [B].
        value_weight: w of the mixed baseline, in [0, 1].
        sum_over_ranks: sums a tensor over ranks.
    """

    rewards: Tensor
    values: Tensor
    lengths: Tensor
    samples: int = 1
    greedy: Tensor | None = None
    costs: Tensor | None = None
    gamma: float = 1.0
    lam: float | Tensor = 1.0
    value_weight: float = 1.0
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x

    @property
    def totals(self) -> Tensor:
        """[B], the reward less the cost of all tokens."""
        return self.rewards if self.costs is None else self.rewards - self.costs.sum(dim=1)


def sequence_level(rewards: Tensor, values: Tensor) -> Tensor:
    """A = R − V(s_p), one number for the whole response (Sequence-Level PPO).

    Args:
        rewards: [B] float32.
        values: [B] float32, V = sigmoid(logit) from the critic's weights before any update.

    Returns:
        [B] float32, neither whitened nor scaled; positive when the response did better than expected.

    Raises:
        ValueError: shapes differ.
    """
    if rewards.shape != values.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and values {tuple(values.shape)} differ in shape")
    return rewards - values


def mixed_baseline(rewards: Tensor, values: Tensor, samples: int, weight: float) -> Tensor:
    """A = R − [w·V(s_p) + (1 − w)·mean of the N − 1 other responses]: Sequence-Level PPO at w = 1, RLOO at w = 0.

    (cf. arXiv 2603.10848)

    Args:
        rewards: [B] float32.
        values: [B] float32, from the critic's weights before any update.
        samples: N, at least 2 where w is below 1.
        weight: w, in [0, 1].

    Returns:
        [B] float32.

    Raises:
        ValueError: shapes differ, or w is below 1 and N below 2 or no divisor of B.
    """
    by_value = sequence_level(rewards, values)
    return by_value if weight == 1 else weight * by_value + (1 - weight) * leave_one_out(rewards, samples)


def group_normalised(rewards: Tensor, samples: int, epsilon: float = 1e-6) -> Tensor:
    """A = (R − mean) / (std + ε) among the N responses of a prompt, sample std (GRPO, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: [B] float32.
        samples: N, at least 2.
        epsilon: ε.

    Returns:
        [B] float32, 0 where all responses of a prompt got the same.

    Raises:
        ValueError: N is below 2 or does not divide B.
    """
    groups = _groups(rewards, samples)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + epsilon)).flatten()


def group_centred(rewards: Tensor, samples: int) -> Tensor:
    """A = R − mean among the N responses of a prompt, not divided by anything (Dr. GRPO, arXiv 2503.20783, section 3).

    Args:
        rewards: [B] float32.
        samples: N, at least 2.

    Returns:
        [B] float32.

    Raises:
        ValueError: N is below 2 or does not divide B.
    """
    groups = _groups(rewards, samples)
    return (groups - groups.mean(dim=1, keepdim=True)).flatten()


def leave_one_out(rewards: Tensor, samples: int) -> Tensor:
    """A = R − mean of the N − 1 other responses to the prompt (RLOO, arXiv 2402.14740, section 3.2).

    Args:
        rewards: [B] float32.
        samples: N, at least 2.

    Returns:
        [B] float32.

    Raises:
        ValueError: N is below 2 or does not divide B.
    """
    groups = _groups(rewards, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def iteration_baseline(rewards: Tensor, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """A = R − mean of the iteration's other rewards (REINFORCE; the leave-one-out mean of RLOO over all prompts).

    Args:
        rewards: [B] float32.
        sum_over_ranks: sums a tensor over ranks.

    Returns:
        [B] float32.

    Raises:
        InputError: there is no other reward.
    """
    total, count = sum_over_ranks(torch.stack([rewards.sum(), rewards.new_tensor(len(rewards))]))
    if count < 2:
        raise InputError("REINFORCE compares the responses of an iteration; set data.problems_per_epoch to 2 or more")
    return rewards - (total - rewards) / (count - 1)


def greedy_baseline(rewards: Tensor, greedy: Tensor | None) -> Tensor:
    """A = R − R(greedy response to the same prompt) (ReMax, arXiv 2310.10505, equation 6).

    Args:
        rewards: [B] float32.
        greedy: [B] float32.

    Returns:
        [B] float32.

    Raises:
        ValueError: no greedy response was taken, or shapes differ.
    """
    if greedy is None or greedy.shape != rewards.shape:
        raise ValueError("ReMax needs the reward of a greedy response to the prompt of every sampled one")
    return rewards - greedy


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,
    costs: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation over the tokens of each response (Schulman et al. 2016, equation 16).

    δ_t = r_t + γ V(s_{t+1}) − V(s_t), A_t = δ_t + γ λ A_{t+1}; the response's reward is paid at its last token, and
    nothing follows it, also where it was truncated.

    Args:
        rewards: [B] float32.
        values: [B, T] float32, V(s_t) of the state before token t; padding may hold anything.
        lengths: [B] int64, at least 1.
        gamma: γ, in [0, 1].
        lam: λ, in [0, 1], one number or [B].
        costs: [B, T] float32 taken from each token's reward, or None.

    Returns:
        [B, T] float32, zeros on padding.
    """
    mask = response_mask(lengths, values.shape[1])
    values = torch.where(mask, values, 0.0)
    paid = torch.zeros_like(values).scatter(1, lengths[:, None] - 1, rewards[:, None])
    if costs is not None:
        paid = paid - torch.where(mask, costs, 0.0)
    advantages = torch.zeros_like(values)
    following = next_value = torch.zeros_like(rewards)
    for t in reversed(range(values.shape[1])):
        following = paid[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        following = torch.where(mask[:, t], following, 0.0)
        advantages[:, t], next_value = following, values[:, t]
    return advantages


def returns_to_go(rewards: Tensor, lengths: Tensor, gamma: float = 1.0, costs: Tensor | None = None) -> Tensor:
    """What each token and those after it are paid: G_t = r_t + γ G_{t+1} (REINFORCE++, arXiv 2501.03262).

    Without costs and discount it is R at every token, so that whitening it over tokens weighs each response by its
    length: the measure in which `token-mean` takes its mean.

    Args:
        rewards: [B] float32, paid at the last token.
        lengths: [B] int64, at least 1.
        gamma: γ, in [0, 1].
        costs: [B, T] float32 taken from each token's reward, or None.

    Returns:
        [B, T] float32 with T the longest of `lengths`, zeros on padding.
    """
    nothing = rewards.new_zeros(len(rewards), int(lengths.max()))
    return gae(rewards, nothing, lengths, gamma=gamma, lam=1.0, costs=costs)


def length_adaptive_lam(lengths: Tensor, alpha: float = 0.05) -> Tensor:
    """λ = 1 − 1/(α·length) of each response, 0 where that is negative (VAPO, arXiv 2504.05118).

    The estimator looks about 1/(1 − λ) = α·length tokens ahead: the same share of every response.

    Args:
        lengths: [B] int64, at least 1.
        alpha: α.

    Returns:
        [B] float32.
    """
    return (1 - 1 / (alpha * lengths.float())).clamp(min=0.0)


def whiten(
    advantages: Tensor, mask: Tensor, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x, epsilon: float = 1e-8
) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over what is unmasked, on all ranks.

    Args:
        advantages: [B] or [B, T] float32.
        mask: bool, of the same shape.
        sum_over_ranks: sums a tensor over ranks.
        epsilon: added to the variance (with n − 1 in its denominator).

    Returns:
        the same shape, zeros where masked.
    """
    mean, squares, count = masked_moments(advantages, mask, sum_over_ranks)
    variance = squares / (count - 1).clamp(min=1)
    return torch.where(mask, (advantages - mean) * (variance + epsilon).rsqrt(), 0.0)


def equal_groups(rewards: Tensor, samples: int) -> Tensor:
    """Which responses belong to a prompt whose N responses all got the same: a group that teaches nothing.

    (DAPO's dynamic sampling leaves them out, arXiv 2503.14476, section 3.2.)

    Args:
        rewards: [B] float32.
        samples: N, at least 2.

    Returns:
        [B] bool.

    Raises:
        ValueError: N is below 2 or does not divide B.
    """
    groups = _groups(rewards, samples)
    return (groups == groups[:, :1]).all(dim=1).repeat_interleave(samples)


def _groups(rewards: Tensor, samples: int) -> Tensor:
    if samples < 2 or len(rewards) % samples:
        raise ValueError(f"{len(rewards)} rewards are no groups of {samples} responses, at least 2 to a prompt")
    return rewards.view(-1, samples)
