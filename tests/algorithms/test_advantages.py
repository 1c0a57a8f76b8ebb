"""Every advantage estimator against a second writing of its equation, token by token, and against verl."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sppo_lit.algorithms.advantages import (
    Outcomes,
    equal_groups,
    gae,
    length_adaptive_lam,
    sequence_level,
    whiten,
)
from sppo_lit.algorithms.masking import response_mask
from sppo_lit.algorithms.specs import ALGORITHMS
from sppo_lit.errors import InputError

B, N, T = 24, 4, 9


def ragged(seed: int, samples: int = N) -> Outcomes:
    """Outcomes of random lengths, rewards (0 and 1 mostly, some shaped), values and costs; NaN on padding."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    mask = response_mask(lengths, T)
    rewards = torch.randint(0, 2, (B,), generator=g).double()
    rewards[::5] += torch.randn(len(rewards[::5]), generator=g, dtype=torch.float64)
    costs = torch.where(mask, torch.randn(B, T, generator=g, dtype=torch.float64), 0.0)
    values = torch.where(mask, torch.rand(B, T, generator=g, dtype=torch.float64), torch.nan)
    greedy = torch.randint(0, 2, (B,), generator=g).double()
    return Outcomes(rewards, values, lengths, samples, greedy, costs, gamma=0.97, lam=0.9)


def total(o: Outcomes, i: int) -> float:
    assert o.costs is not None
    return float(o.rewards[i]) - sum(float(o.costs[i, t]) for t in range(int(o.lengths[i])))


def group(o: Outcomes, i: int) -> list[float]:
    first = i // o.samples * o.samples
    return [total(o, j) for j in range(first, first + o.samples)]


def reference(name: str, o: Outcomes, i: int) -> float:
    """A of response i, from the equation of its paper."""
    if name == "sppo":
        return total(o, i) - float(o.values[i, 0])
    if name == "reinforce":
        return total(o, i) - statistics.mean(total(o, j) for j in range(B) if j != i)
    if name == "remax":
        assert o.greedy is not None
        return total(o, i) - float(o.greedy[i])
    rewards = group(o, i)
    if name == "grpo":
        return (total(o, i) - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-6)
    if name == "dr_grpo":
        return total(o, i) - statistics.mean(rewards)
    others = rewards[: i % o.samples] + rewards[i % o.samples + 1 :]
    return total(o, i) - statistics.mean(others)


def reference_gae(o: Outcomes, i: int, t: int) -> float:
    """Σ_k (γλ)^k δ_{t+k}, summed forwards."""
    assert o.costs is not None
    lam = float(o.lam[i]) if isinstance(o.lam, Tensor) else o.lam
    length, v = int(o.lengths[i]), [float(x) for x in o.values[i]]
    advantage = 0.0
    for k in range(t, length):
        paid = (float(o.rewards[i]) if k == length - 1 else 0.0) - float(o.costs[i, k])
        ahead = v[k + 1] if k + 1 < length else 0.0
        advantage += (o.gamma * lam) ** (k - t) * (paid + o.gamma * ahead - v[k])
    return advantage


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sppo", "grpo", "dr_grpo", "rloo", "remax", "reinforce"])
def test_advantage_of_a_response(name: str, seed: int) -> None:
    o = ragged(seed, samples=1 if name in ("sppo", "remax", "reinforce") else N)
    if name == "sppo":
        o = o._replace(values=o.values[:, 0].clone())
        by_token = o._replace(values=o.values[:, None].expand(-1, T))
    else:
        by_token = o
    found = ALGORITHMS[name].advantage(o)
    assert found.shape == (B,) and found.dtype == torch.float64
    for i in range(B):
        assert float(found[i]) == pytest.approx(reference(name, by_token, i), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["ppo", "ppo_bce", "vc_ppo"])
def test_advantage_of_every_token(name: str, seed: int) -> None:
    o = ragged(seed, samples=1)
    if callable(lam := ALGORITHMS[name].lam):
        o = o._replace(lam=lam(o.lengths * 9).double())  # as of up to 81 tokens
    found = ALGORITHMS[name].advantage(o)
    for i in range(B):
        for t in range(T):
            expected = reference_gae(o, i, t) if t < int(o.lengths[i]) else 0.0
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_mixed_baseline_lies_between_the_value_and_the_others(seed: int, weight: float) -> None:
    o = ragged(seed)
    o = o._replace(values=o.values[:, 0].clone(), value_weight=weight)
    found = ALGORITHMS["sppo"].advantage(o)
    for i in range(B):
        others = total(o, i) - reference("rloo", o, i)
        expected = total(o, i) - (weight * float(o.values[i]) + (1 - weight) * others)
        assert float(found[i]) == pytest.approx(expected, abs=1e-9)
    if weight == 1:
        assert torch.equal(found, sequence_level(o.totals, o.values))
    if weight == 0:
        assert torch.equal(found, ALGORITHMS["rloo"].advantage(o))


def test_reinforce_compares_with_the_other_rewards_of_all_ranks() -> None:
    whole = ragged(3, samples=1)
    expected = ALGORITHMS["reinforce"].advantage(whole)
    for mine, other in ((slice(0, 10), slice(10, B)), (slice(10, B), slice(0, 10))):
        theirs = torch.tensor([whole.totals[other].sum(), len(whole.totals[other])], dtype=torch.float64)
        assert whole.costs is not None
        rank = Outcomes(
            whole.rewards[mine],
            whole.values[mine],
            whole.lengths[mine],
            costs=whole.costs[mine],
            sum_over_ranks=lambda x, theirs=theirs: x + theirs,
        )
        torch.testing.assert_close(ALGORITHMS["reinforce"].advantage(rank), expected[mine], atol=1e-12, rtol=0)
    with pytest.raises(InputError, match=r"data\.problems_per_epoch to 2 or more"):
        ALGORITHMS["reinforce"].advantage(Outcomes(torch.ones(1), torch.zeros(1), torch.ones(1)))


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_pp_whitens_over_tokens(seed: int) -> None:
    """Against the moments of a plain list that holds each response's reward once for each of its tokens."""
    o = ragged(seed, samples=1)._replace(costs=None, gamma=1.0)
    lengths = [int(n) for n in o.lengths]
    by_token = [float(r) for r, n in zip(o.rewards, lengths, strict=True) for _ in range(n)]
    mean, deviation = statistics.mean(by_token), statistics.stdev(by_token)
    mask = response_mask(o.lengths, max(lengths))
    found = whiten(ALGORITHMS["reinforce_pp"].advantage(o), mask)
    assert ALGORITHMS["reinforce_pp"].whiten
    for i, n in enumerate(lengths):
        assert found[i, :n].tolist() == pytest.approx([(float(o.rewards[i]) - mean) / deviation] * n, abs=1e-6)
        assert not found[i, n:].any()
    assert float(found.sum()) == pytest.approx(0, abs=1e-9), "centred under the mean over tokens"
    # With costs and a discount: what is still to be paid, summed forwards.
    o = ragged(seed, samples=1)
    assert o.costs is not None
    found = ALGORITHMS["reinforce_pp"].advantage(o)
    for i, n in enumerate(lengths):
        for t in range(n):
            ahead = sum(-float(o.costs[i, k]) * o.gamma ** (k - t) for k in range(t, n))
            assert float(found[i, t]) == pytest.approx(ahead + float(o.rewards[i]) * o.gamma ** (n - 1 - t), abs=1e-9)


def test_lambda_that_adapts_to_the_length() -> None:
    lengths = torch.tensor([1, 20, 40, 200, 8192])
    assert length_adaptive_lam(lengths).tolist() == pytest.approx([0, 0, 0.5, 0.9, 1 - 1 / 409.6], abs=1e-6)
    vc_ppo, ppo = ALGORITHMS["vc_ppo"], ALGORITHMS["ppo"]
    assert (vc_ppo.lam, vc_ppo.critic_lam, ppo.lam, ppo.critic_lam) == (length_adaptive_lam, 1.0, 1.0, None)


def test_without_discount_every_token_is_given_the_reward_less_its_value() -> None:
    o = ragged(7, samples=1)
    found = gae(o.rewards, o.values, o.lengths)
    mask = response_mask(o.lengths, T)
    assert torch.allclose(found[mask], (o.rewards[:, None] - o.values)[mask], atol=1e-12)


def test_whitened_over_what_is_unmasked_on_all_ranks() -> None:
    g = torch.Generator().manual_seed(1)
    advantages = torch.randn(6, T, generator=g, dtype=torch.float64) * 3 + 2
    mask = response_mask(torch.tensor([9, 1, 4, 7, 2, 9]), T)
    plain = [float(a) for a in advantages[mask]]
    mean, deviation = statistics.mean(plain), statistics.stdev(plain)
    whole = whiten(torch.where(mask, advantages, torch.nan), mask)
    assert torch.allclose(whole[mask], (advantages[mask] - mean) / math.sqrt(deviation**2 + 1e-8), atol=1e-9)
    assert not whole[~mask].any()
    # Two ranks: each has half, the sums are those of both.
    halves = [(advantages[:3], mask[:3]), (advantages[3:], mask[3:])]
    for part in (0, 1):
        own, other = halves[part], halves[1 - part]
        both = [
            other[1].sum().double(),
            torch.where(other[1], other[0], 0.0).sum(),
            torch.where(other[1], other[0] - mean, 0.0).square().sum(),
        ]
        found = whiten(*own, lambda x, left=both: x + left.pop(0))
        assert torch.allclose(found, whole[3 * part : 3 * part + 3], atol=1e-9)


def test_groups_that_teach_nothing() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    assert equal_groups(rewards, 2).tolist() == [True, True, False, False, True, True]
    for name in ("grpo", "dr_grpo", "rloo"):
        advantage = ALGORITHMS[name].advantage(Outcomes(rewards, torch.zeros(6), torch.ones(6), 2))
        assert not advantage[equal_groups(rewards, 2)].any()


@pytest.mark.parametrize("samples", [1, 5])
def test_no_groups_of_that_size(samples: int) -> None:
    for name in ("grpo", "dr_grpo", "rloo"):
        with pytest.raises(ValueError, match="no groups"):
            ALGORITHMS[name].advantage(Outcomes(torch.zeros(B), torch.zeros(B), torch.ones(B), samples))


def verl(name: str, seed: int) -> tuple[Outcomes, Tensor, Tensor, Tensor]:
    """Outcomes with our advantages, and verl's advantages and returns for them."""
    core = pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)
    import numpy as np

    o = ragged(seed, samples=1 if name in ("ppo", "remax", "reinforce", "reinforce_pp") else N)
    mask = response_mask(o.lengths, T)
    assert o.costs is not None
    tokens = -o.costs + torch.zeros_like(o.costs).scatter(1, o.lengths[:, None] - 1, o.rewards[:, None])
    index = np.zeros(B) if name == "reinforce" else np.repeat(np.arange(B // o.samples), o.samples)
    if name == "ppo":
        values = torch.where(mask, o.values, 0.0)
        theirs = core.compute_gae_advantage_return(tokens, values, mask.double(), o.gamma, o.lam)
    elif name == "remax":
        o, tokens = o._replace(costs=None), tokens + o.costs  # verl charges a token only for what follows it
        theirs = core.compute_remax_outcome_advantage(tokens, o.greedy, mask)
    elif name == "reinforce_pp":
        theirs = core.compute_reinforce_plus_plus_outcome_advantage(
            tokens, mask.double(), config=SimpleNamespace(gamma=o.gamma)
        )
    elif name in ("rloo", "reinforce"):  # which is RLOO of one group
        theirs = core.compute_rloo_outcome_advantage(tokens.clone(), mask, index)
    else:
        norm = name != "dr_grpo"
        theirs = core.compute_grpo_outcome_advantage(tokens.clone(), mask, index, norm_adv_by_std_in_grpo=norm)
    return o, mask, theirs[0], theirs[1]


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "dr_grpo", "rloo", "remax", "reinforce", "reinforce_pp"])
def test_equal_to_verl(name: str) -> None:
    for seed in range(3):
        o, mask, theirs, returns = verl(name, seed)
        ours = ALGORITHMS[name].advantage(o)
        if ALGORITHMS[name].whiten:
            before = ours if name == "reinforce_pp" else ours + o.values
            assert torch.allclose(before[mask], returns[mask], atol=1e-9)
            ours = whiten(ours, mask)
        ours = ours if ours.ndim == 2 else ours[:, None].expand(-1, T)
        assert torch.allclose(ours[mask], theirs[mask].double(), atol=1e-9)
