"""Networks of the control benchmark: episodes are drawn from the distribution whose probabilities they report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppo_lit.control.environments import ENVIRONMENTS
from sppo_lit.control.networks import ControlPolicy, Normaliser, StateCritic, play


def made(name: str) -> ControlPolicy:
    torch.manual_seed(0)
    policy = ControlPolicy(ENVIRONMENTS[name], (16, 16))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    policy.normaliser.fit(torch.randn(100, ENVIRONMENTS[name].observations) * 2 + 1)
    return policy


@pytest.mark.parametrize("name", ["cartpole", "lunar_lander", "pendulum", "hopper"])
def test_actions_are_drawn_with_their_log_probabilities(name: str) -> None:
    policy, spec, count = made(name), ENVIRONMENTS[name], 20_000
    observation = torch.randn(1, spec.observations).expand(count, -1)
    noise = policy.noise(range(count), 1)[:, 0]
    actions = torch.from_numpy(policy.actor()(observation.numpy(), noise))
    with torch.no_grad():
        terms = policy(observation, actions)
    # The mean of −log p over what is drawn is the entropy.
    assert float(-terms.logprobs.mean()) == pytest.approx(float(terms.entropy[0]), abs=0.04)
    if spec.discrete:
        logprobs = policy(observation[: spec.actions], torch.arange(spec.actions)).logprobs
        assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-5)
        drawn = torch.bincount(actions, minlength=spec.actions) / count
        assert torch.allclose(drawn, logprobs.detach().exp(), atol=0.02)
    best = torch.from_numpy(policy.actor()(observation[:1].numpy(), None))
    assert float(policy(observation[:1], best).logprobs) >= float(terms.logprobs.max()) - 1e-5


def test_running_normalisation_has_the_moments_of_everything_seen() -> None:
    parts, normaliser = [torch.randn(n, 3) * n + torch.tensor([0.0, 1.0, n]) for n in (40, 7, 100)], Normaliser(3)
    normaliser.mean.copy_(parts[0].mean(dim=0))
    normaliser.deviation.copy_(parts[0].std(dim=0, correction=0))
    normaliser.update(parts[1], 40)
    normaliser.update(parts[2], 47)
    torch.testing.assert_close(normaliser.mean, torch.cat(parts).mean(dim=0))
    torch.testing.assert_close(normaliser.deviation, torch.cat(parts).std(dim=0, correction=0))


def test_an_episode_depends_on_its_seed_and_key_alone() -> None:
    policy, spec = made("cartpole"), ENVIRONMENTS["cartpole"]
    together = play(spec.make(), policy, [5, 6, 5], [1, 2, 3], spec.horizon)
    alone = play(spec.make(), policy, [6], [2], spec.horizon)
    steps = int(alone.lengths[0])
    assert int(together.lengths[1]) == steps
    assert (together.actions[1, :steps] == alone.actions[0, :steps]).all()
    assert torch.allclose(together.observations[1, :steps], alone.observations[0, :steps], atol=1e-5)
    assert (together.observations[0, 0] == together.observations[2, 0]).all(), "a group shares its initial state"
    assert not np.array_equal(together.actions[0], together.actions[2])


def test_the_scalar_critic_reads_the_initial_state_alone_and_the_other_one_reads_along() -> None:
    spec = ENVIRONMENTS["pendulum"]
    observations = torch.randn(3, 7, 3, requires_grad=True)
    values = StateCritic(spec, (8,), by_step=False)(observations)
    values.sum().backward()
    assert values.shape == (3,) and observations.grad is not None
    assert (observations.grad[:, 1:] == 0).all() and (observations.grad[:, 0] != 0).any()
    along = StateCritic(spec, (8,), by_step=True)
    assert along(observations).shape == (3, 7)
    same = torch.zeros(1, 5, 3)
    assert len(along(same)[0].unique()) == 5, "it knows how much time is left"
