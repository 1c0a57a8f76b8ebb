"""Advantage estimators. Each takes what one iteration sampled and returns A for every response.

Sequence-Level PPO treats the whole response as one action of a contextual bandit (paper, section 3): context = the
prompt s_p, action = the response, horizon 1. There is nothing to discount and nothing to whiten.
"""

from __future__ import annotations

from torch import Tensor


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
