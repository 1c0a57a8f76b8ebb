"""The losses and the advantage against references written a token at a time, values and gradients."""

from __future__ import annotations

import math
import random

import pytest
import torch

from sppo_lit.algorithms.advantages import sequence_level
from sppo_lit.algorithms.losses import (
    approx_kl,
    clipped_surrogate,
    critic_bce,
    critic_clipped_mse,
    importance_weights,
    kl_penalty,
    sequence_surrogate,
)
from sppo_lit.algorithms.masking import Aggregation, masked_sum, response_mask, token_weights

LOW, HIGH = 0.2, 0.28


def reference(new: float, old: float, advantage: float, c: float | None) -> tuple[float, float]:
    """Loss of one token and its derivative by the token's log-probability."""
    log_ratio = new - old
    flat = abs(log_ratio) > 20
    ratio = math.exp(max(-20.0, min(20.0, log_ratio)))
    if advantage >= 0:
        if ratio > 1 + HIGH:
            return -advantage * (1 + HIGH), 0.0
    elif ratio < 1 - LOW:
        return -advantage * (1 - LOW), 0.0
    elif c is not None and ratio > c:
        return -advantage * c, 0.0
    return -advantage * ratio, 0.0 if flat else -advantage * ratio


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_clipped_surrogate_equals_the_token_by_token_reference(dual_clip: float | None, per_token: bool) -> None:
    rng = random.Random(0)
    size = (40, 25)
    new = torch.tensor([[rng.uniform(-6, 0) for _ in range(size[1])] for _ in range(size[0])], dtype=torch.float64)
    shift = [[rng.choice([0, 0.1, 0.3, 1.5, 25]) * rng.choice([-1, 1]) for _ in range(size[1])] for _ in range(size[0])]
    old = new - torch.tensor(shift, dtype=torch.float64)
    advantages = torch.tensor([[rng.uniform(-1, 1) for _ in range(size[1])] for _ in range(size[0])]).double()
    if not per_token:
        advantages = advantages[:, 0]
    new.requires_grad_()
    terms = clipped_surrogate(
        new, old, advantages, torch.ones_like(new).bool(), clip_low=LOW, clip_high=HIGH, dual_clip=dual_clip
    )
    terms.loss.sum().backward()
    seen = set()
    for i in range(size[0]):
        for t in range(size[1]):
            a = float(advantages[i, t] if per_token else advantages[i])
            loss, slope = reference(float(new.detach()[i, t]), float(old[i, t]), a, dual_clip)
            assert float(terms.loss.detach()[i, t]) == pytest.approx(loss, rel=1e-9)
            assert float(new.grad[i, t]) == pytest.approx(slope, rel=1e-9)
            if terms.clipped[i, t] or terms.dual_clipped[i, t]:
                assert new.grad[i, t] == 0
            seen.add((bool(terms.clipped[i, t]), bool(terms.dual_clipped[i, t]), a > 0))
    assert (True, False, True) in seen and (True, False, False) in seen
    assert ((False, True, False) in seen) == (dual_clip is not None)


def test_an_absurd_token_gives_a_finite_loss_without_gradient() -> None:
    new = torch.tensor([[0.0, -1e4]], requires_grad=True)
    old = torch.tensor([[-1e4, 0.0]])
    for advantage in (-1.0, 1.0):
        terms = clipped_surrogate(new, old, torch.tensor([advantage]), torch.ones_like(new).bool(), dual_clip=None)
        (gradient,) = torch.autograd.grad(terms.loss.sum(), new)
        assert terms.loss.isfinite().all() and not gradient.any()


def test_unchanged_weights_give_the_policy_gradient() -> None:
    new = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    terms = clipped_surrogate(new, new.detach(), torch.tensor([0.7]), torch.ones_like(new).bool())
    terms.loss.sum().backward()
    assert torch.equal(terms.ratio, torch.ones(1, 2)) and not terms.clipped.any() and not terms.dual_clipped.any()
    assert torch.allclose(new.grad, torch.tensor([[-0.7, -0.7]]))


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_sequence_surrogate_equals_the_loss_of_gspo_sequence_by_sequence(dual_clip: float | None) -> None:
    """Equation 5 of arXiv 2507.18071: one clipped ratio for each response, its gradient by finite differences."""
    rng = random.Random(1)
    lengths = [rng.randint(1, 9) for _ in range(60)]
    mask = response_mask(torch.tensor(lengths), 9)
    new = torch.tensor([[rng.uniform(-3, 0) for _ in range(9)] for _ in lengths], dtype=torch.float64)
    shift = torch.tensor([[rng.choice([0, 3e-4, 2e-3, 2.0]) * rng.choice([-1, 1])] * 9 for _ in lengths]).double()
    old = torch.where(mask, new - shift * torch.rand(new.shape, generator=torch.Generator().manual_seed(0)), 7.0)
    advantages = torch.tensor([rng.uniform(-1, 1) for _ in lengths]).double()

    def expected(new: torch.Tensor) -> torch.Tensor:
        total, clips = torch.zeros((), dtype=torch.float64), set()
        for i, n in enumerate(lengths):
            a, s = advantages[i], (new[i, :n] - old[i, :n]).mean().exp()
            loss = torch.maximum(-a * s, -a * s.clamp(1 - 3e-4, 1 + 4e-4))
            clips.add((bool(loss > -a * s), bool(a > 0)))
            total = total + (torch.minimum(loss, -a * dual_clip) if dual_clip and a < 0 else loss) / len(lengths)
        assert clips == {(clipped, positive) for clipped in (True, False) for positive in (True, False)}
        return total

    ours, theirs = new.clone().requires_grad_(), new.clone().requires_grad_()
    terms = sequence_surrogate(ours, old, advantages, mask, dual_clip=dual_clip)
    weights = token_weights(mask, "seq-mean-token-mean", sequences=60, tokens=sum(lengths), norm_length=9)
    loss = masked_sum(terms.loss * weights, mask)
    assert float(loss.detach()) == pytest.approx(float(expected(theirs).detach()), rel=1e-6)
    loss.backward()
    expected(theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)
    assert terms.dual_clipped.any() == (dual_clip is not None)


def test_critic_loss_is_cross_entropy_with_slope_value_minus_label() -> None:
    logits = torch.tensor([-3.0, 0.0, 0.5, 80.0, -80.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64)
    loss = critic_bce(logits, labels)
    value = torch.sigmoid(logits.detach())
    expected = [
        -(y * math.log(v) + (1 - y) * math.log(1 - v))
        for v, y in zip(value.tolist()[:3], labels.tolist()[:3], strict=True)
    ]
    assert loss.detach()[:3].tolist() == pytest.approx(expected)
    assert loss.detach()[3:].tolist() == pytest.approx([0, 80]), "finite where the sigmoid saturates"
    loss.sum().backward()
    assert torch.allclose(logits.grad, value - labels)


def test_approx_kl_is_never_negative_and_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(6, generator=generator).log_softmax(0) for _ in range(2))
    kl = approx_kl(new, old)
    assert bool((kl >= 0).all()) and not approx_kl(old, old).any()
    assert float((old.exp() * kl).sum()) == pytest.approx(float((old.exp() * (old - new)).sum()), abs=1e-6)
    assert approx_kl(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0])).isfinite().all()


def test_advantage_is_reward_minus_value_for_the_whole_response() -> None:
    rewards, values = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.25, 0.25, 1.0])
    assert sequence_level(rewards, values).tolist() == [0.75, -0.25, 0.0]
    with pytest.raises(ValueError, match="differ in shape"):
        sequence_level(rewards, values[:, None])


@pytest.mark.parametrize("clip", [0.5, 0.05])
def test_clipped_squared_error_of_a_critic(clip: float) -> None:
    g = torch.Generator().manual_seed(2)
    outputs, targets, old = (torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(3))
    found = critic_clipped_mse(outputs, targets, old, clip)
    for v, target, before, loss in zip(
        outputs.flatten(), targets.flatten(), old.flatten(), found.flatten(), strict=True
    ):
        near = min(max(float(v), float(before) - clip), float(before) + clip)
        expected = 0.5 * max((float(v) - float(target)) ** 2, (near - float(target)) ** 2)
        assert float(loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_to_the_reference(estimator: str) -> None:
    g = torch.Generator().manual_seed(3)
    new, reference = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    found = kl_penalty(new, reference, estimator)
    for a, b, kl in zip(new.flatten().tolist(), reference.flatten().tolist(), found.flatten().tolist(), strict=True):
        expected = {"k1": a - b, "k2": 0.5 * (a - b) ** 2, "k3": math.exp(b - a) - 1 - (b - a)}[estimator]
        assert kl == pytest.approx(expected, abs=1e-9)
    # On average over what the policy samples, k1 and k3 are the divergence itself.
    p, q = (torch.randn(6, generator=g, dtype=torch.float64).log_softmax(0) for _ in range(2))
    if estimator != "k2":
        assert float((p.exp() * kl_penalty(p, q, estimator)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()))


def test_losses_equal_those_of_verl() -> None:
    core = pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)
    g = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 12, (16,), generator=g)
    mask = response_mask(lengths, 11)
    new, old, advantages, values = (torch.randn(16, 11, generator=g, dtype=torch.float64) for _ in range(4))
    modes: tuple[Aggregation, ...] = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
    for mode in modes:
        weights = token_weights(mask, mode, sequences=16, tokens=int(lengths.sum()), norm_length=11)
        ours = masked_sum(clipped_surrogate(new, old, advantages, mask, clip_high=0.28).loss * weights, mask)
        theirs, *_ = core.compute_policy_loss(
            old, new, advantages, mask, 0.2, 0.2, 0.28, clip_ratio_c=3.0, loss_agg_mode=mode
        )
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    theirs, _ = core.compute_value_loss(values, advantages, old, mask, 0.5)
    ours = masked_sum(critic_clipped_mse(values, advantages, old, 0.5), mask) / mask.sum()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-9)
    for ours_name, name in (("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")):
        theirs = core.kl_penalty_forward(new * 0.3, old * 0.3, name)
        assert torch.allclose(kl_penalty(new * 0.3, old * 0.3, ours_name), theirs, atol=1e-9)  # type: ignore[arg-type]


def test_gspo_and_its_gradient_equal_those_of_verl() -> None:
    core = pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=3e-4,
        clip_ratio_low=3e-4,
        clip_ratio_high=4e-4,
    )
    g = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 12, (64,), generator=g)
    mask = response_mask(lengths, 11)
    old, advantages = (torch.randn(64, 11, generator=g, dtype=torch.float64) for _ in range(2))
    advantages = advantages[:, :1].expand_as(advantages)
    new = (old + 6e-4 * torch.randn(64, 11, generator=g, dtype=torch.float64)).requires_grad_()
    theirs, *_ = core.compute_policy_loss_gspo(old, new, advantages, mask, config=config)
    weights = token_weights(mask, "seq-mean-token-mean", sequences=64, tokens=int(lengths.sum()), norm_length=11)
    terms = sequence_surrogate(new, old, advantages[:, 0], mask, dual_clip=None)  # verl has none here
    ours = masked_sum(terms.loss * weights, mask)
    assert 0 < terms.clipped[mask].double().mean() < 1
    assert float(ours) == pytest.approx(float(theirs), rel=1e-7)
    [one], [two] = torch.autograd.grad(ours, [new]), torch.autograd.grad(theirs, [new])
    assert torch.allclose(one, two, rtol=1e-6, atol=1e-12) and one.abs().sum() > 0


@pytest.mark.parametrize("token_cap", [None, 2.0])
@pytest.mark.parametrize("sequence_cap", [None, 3.0])
def test_importance_weights_equal_the_token_by_token_reference(
    token_cap: float | None, sequence_cap: float | None
) -> None:
    rng = random.Random(1)
    lengths = [1, 2, 5, 9, 9, 9]
    old = torch.tensor([[rng.uniform(-3, 0) for _ in range(9)] for _ in lengths], dtype=torch.float64)
    spread = [1.5, 0.2, 0.1, 0.05, 0.8, 0.8]
    sampled = old + torch.tensor([[rng.gauss(0, s) for _ in range(9)] for s in spread], dtype=torch.float64)
    sampled[0, 0] = old[0, 0] - math.log(7)  # beyond both caps
    mask = response_mask(torch.tensor(lengths), 9)
    weights = importance_weights(
        old, torch.where(mask, sampled, torch.nan), mask, token_cap=token_cap, sequence_cap=sequence_cap
    )
    dropped = 0
    for row, length in enumerate(lengths):
        ratios = [math.exp(float(old[row, t] - sampled[row, t])) for t in range(length)]
        beyond = sequence_cap is not None and math.prod(ratios) > sequence_cap
        dropped += beyond
        for t, ratio in enumerate(ratios):
            expected = 0.0 if beyond else 1.0 if token_cap is None else min(ratio, token_cap)
            assert float(weights[row, t]) == pytest.approx(expected, rel=1e-9)
    assert bool(weights.isfinite().all()) and dropped in ({0} if sequence_cap is None else {1, 2, 3})
    equal = importance_weights(old, old, mask, token_cap=token_cap, sequence_cap=sequence_cap)
    assert torch.equal(equal, torch.ones_like(equal))
