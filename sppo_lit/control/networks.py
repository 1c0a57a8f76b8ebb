"""Small networks on observations, and playing episodes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sppo_lit.control.environments import EnvironmentSpec, VectorEnvironment
from sppo_lit.rollout.randomness import uniforms

LIMIT = 10.0
"""Normalised observations are clipped at ± this."""


def mlp(inputs: int, hidden: Sequence[int], outputs: int, gain: float) -> nn.Sequential:
    """Layers with tanh between them, orthogonal weights and zero biases, as stable-baselines3 has them."""
    sizes, layers = [inputs, *hidden], list[nn.Module]()
    for a, b in pairwise(sizes):
        layers += [_linear(a, b, math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*layers, _linear(sizes[-1], outputs, gain))


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Normaliser(nn.Module):
    """Shifts and scales observations [..., O] by the mean and deviation of earlier ones; clips at ± `LIMIT`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, observations: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observations))
        self.register_buffer("deviation", torch.ones(observations))

    def fit(self, observations: Tensor) -> None:
        """Take mean and deviation of observations [N, O]."""
        self.mean.copy_(observations.mean(dim=0))
        self.deviation.copy_(observations.std(dim=0).clamp(min=1e-4))

    def update(self, observations: Tensor, seen: int) -> None:
        """Merge observations [N, O] into mean and deviation, which stand for `seen` earlier ones."""
        count = len(observations)
        own, share = observations.mean(dim=0), count / (seen + count)
        variance = self.deviation.square().lerp(observations.var(dim=0, correction=0), share)
        variance += share * (1 - share) * (own - self.mean).square()
        self.mean.lerp_(own, share)
        self.deviation.copy_(variance.sqrt().clamp(min=1e-4))

    def forward(self, observations: Tensor) -> Tensor:
        """Normalised observations, of the same shape."""
        return ((observations - self.mean) / self.deviation).clamp(-LIMIT, LIMIT)


class ActionTerms(NamedTuple):
    """Log-probabilities of actions and entropy of their distribution, [...] each."""

    logprobs: Tensor
    entropy: Tensor


class ControlPolicy(nn.Module):
    """Distribution of actions: categorical, or Gaussian with a deviation that does not depend on the observation.

    Args:
        spec: the environment.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, spec: EnvironmentSpec, hidden: Sequence[int]) -> None:
        super().__init__()
        self.discrete, self.actions = spec.discrete, spec.actions
        self.normaliser = Normaliser(spec.observations)
        self.body = mlp(spec.observations, hidden, spec.actions, 0.01)
        self.log_std = None if spec.discrete else nn.Parameter(torch.zeros(spec.actions))

    def forward(self, observations: Tensor, actions: Tensor) -> ActionTerms:
        """Log-probabilities and entropies.

        Args:
            observations: [..., O].
            actions: [...] int64, or [..., A].
        """
        outputs = self.body(self.normaliser(observations))
        if self.log_std is None:
            logprobs = outputs.log_softmax(dim=-1)
            chosen = logprobs.gather(-1, actions[..., None]).squeeze(-1)
            return ActionTerms(chosen, -(logprobs.exp() * logprobs).sum(dim=-1))
        standard = (actions - outputs) * (-self.log_std).exp()
        constant = self.log_std.sum() + 0.5 * self.actions * math.log(2 * math.pi)
        logprobs = -0.5 * standard.square().sum(dim=-1) - constant
        return ActionTerms(logprobs, (constant + 0.5 * self.actions).expand_as(logprobs))

    def noise(self, keys: Sequence[int], steps: int) -> NDArray[np.float32]:
        """The random numbers of episodes, by key: uniform [B, T], or normal [B, T, A]."""
        drawn = torch.from_numpy(uniforms(keys, steps * (1 if self.discrete else self.actions)))
        if self.discrete:
            return drawn.float().numpy()
        return torch.special.ndtri(drawn.clamp(min=2.0**-54)).float().view(len(keys), steps, self.actions).numpy()

    def actor(self) -> Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[Any]]:
        """How episodes are played with the present weights: (observations [B, O], noise) -> actions.

        Noise is [B] or [B, A]; without it the most likely actions are taken. In NumPy, which takes a third of the time
        for so few numbers: log-probabilities for the loss come from `forward`.
        """
        layers = [layer for layer in self.body if isinstance(layer, nn.Linear)]
        weights = [(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()) for layer in layers]
        mean, scale = self.normaliser.mean.numpy().copy(), 1 / self.normaliser.deviation.numpy()
        std = None if self.log_std is None else self.log_std.detach().exp().numpy()

        def act(observations: NDArray[np.float32], noise: NDArray[np.float32] | None) -> NDArray[Any]:
            outputs = np.minimum(np.maximum((observations - mean) * scale, -LIMIT), LIMIT)
            for i, (weight, bias) in enumerate(weights):
                outputs = (np.tanh(outputs) if i else outputs) @ weight + bias
            if std is not None:
                return outputs if noise is None else outputs + std * noise
            if noise is None:
                return outputs.argmax(axis=1)
            chances = np.exp(outputs - outputs.max(axis=1, keepdims=True)).cumsum(axis=1)
            return (chances[:, :-1] <= noise[:, None] * chances[:, -1:]).sum(axis=1)

        return act


class StateCritic(nn.Module):
    """Values of observations: of the initial one (Sequence-Level PPO), or of every one along an episode (PPO).

    Args:
        spec: the environment.
        hidden: sizes of the hidden layers.
        by_step: value every step's observation, and read the share of the horizon that has passed with it (with a fixed
            horizon the outcome depends on the time left; a language model's critic knows the position too).
    """

    def __init__(self, spec: EnvironmentSpec, hidden: Sequence[int], by_step: bool) -> None:
        super().__init__()
        self.by_step, self.horizon = by_step, spec.horizon
        self.normaliser = Normaliser(spec.observations)
        self.body = mlp(spec.observations + by_step, hidden, 1, 1.0)

    def forward(self, observations: Tensor) -> Tensor:
        """Outputs before the link of the algorithm: [B] or [B, T], from observations [B, T, O]."""
        if not self.by_step:
            return self.body(self.normaliser(observations[:, 0])).squeeze(-1)
        steps = torch.arange(observations.shape[1], device=observations.device) / self.horizon
        time = (2 * steps - 1).expand(observations.shape[:2])[..., None]
        return self.body(torch.cat([self.normaliser(observations), time], dim=-1)).squeeze(-1)


class Played(NamedTuple):
    """Episodes that were played, padded on the right to the longest.

    Attributes:
        observations: [B, T, O] float32, before each step.
        actions: [B, T] int64, or [B, T, A] float32, as drawn.
        dense: [B, T] float32, shaped rewards, zeros on padding.
        lengths: [B] int64.
        successes: [B] float32, 0 or 1.
        last: [B, O] float32, observations after the last step.
    """

    observations: Tensor
    actions: Tensor
    dense: Tensor
    lengths: Tensor
    successes: Tensor
    last: Tensor


def play(
    environment: VectorEnvironment,
    policy: ControlPolicy,
    seeds: Sequence[int],
    keys: Sequence[int] | None,
    horizon: int,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Played:
    """Play one episode for each seed.

    Args:
        environment: a vector of episodes.
        policy: draws the actions.
        seeds: of the initial states.
        keys: of the random numbers of each episode; None takes the most likely actions.
        horizon: most steps.
        on_step: called with the steps played so far; may raise to break off.
    """
    noise = None if keys is None else policy.noise(keys, horizon)
    act, observed = policy.actor(), environment.reset(seeds)
    observations = np.empty((len(seeds), horizon, observed.shape[1]), dtype=np.float32)
    actions, dense = [], np.empty((len(seeds), horizon), dtype=np.float32)
    lengths, ended = np.zeros(len(seeds), dtype=np.int64), np.zeros(len(seeds), dtype=bool)
    for t in range(horizon):
        actions.append(act(observed, None if noise is None else noise[:, t]))
        observations[:, t] = observed
        observed, dense[:, t], after = environment.step(actions[-1])
        lengths += ~ended
        ended = after
        on_step(t + 1)
        if ended.all():
            break
    steps = len(actions)
    return Played(
        torch.from_numpy(observations[:, :steps].copy()),
        torch.from_numpy(np.stack(actions, axis=1)),
        torch.from_numpy(dense[:, :steps].copy()),
        torch.from_numpy(lengths),
        torch.from_numpy(environment.succeeded()).float(),
        torch.from_numpy(observed),
    )
