"""The memory of prompts: what it tells of each, and that nothing but the visits of a prompt matters."""

from __future__ import annotations

import math

import pytest
import torch

from sppo_lit.algorithms.tracking import PromptTracker, forgetting, iteration_kl


def keys(*names: int) -> torch.Tensor:
    return torch.tensor([name * 2**40 - 2**62 for name in names])


def test_rho_is_halved_by_kl_and_kept_in_its_range() -> None:
    kl = torch.tensor([0.0, 0.004, 0.01, 0.06, 3.0], dtype=torch.float64)
    expected = [0.96, 2 ** (-0.004 / 0.06), 2 ** (-0.01 / 0.06), 0.875, 0.875]
    assert forgetting(kl).tolist() == pytest.approx(expected)


def test_kl_of_an_iteration_is_measured_before_its_last_step() -> None:
    assert iteration_kl([0.0, 0.003]) == pytest.approx(0.006)
    assert iteration_kl([0.0, 0.001, 0.002, 0.003]) == pytest.approx(0.004)
    assert iteration_kl([0.0, 0.001, 0.002, math.nan]) == pytest.approx(0.004), "a skipped step"
    assert iteration_kl([0.0]) == iteration_kl([]) == 0.0


def test_prompts_are_told_apart_and_new_ones_begin_at_the_mean() -> None:
    tracker = PromptTracker()
    assert tracker.read(keys(1, 2)).tolist() == [0.5, 0.5]
    tracker.update(keys(3, 1), torch.tensor([1.0, 0.0]), kl=0.0)
    good, bad = (0.96 * 4 + 1) / (0.96 * 8 + 1), 0.96 * 4 / (0.96 * 8 + 1)
    assert tracker.read(keys(1, 3, 9)).tolist() == pytest.approx([bad, good, 0.5])
    tracker.update(keys(3, 3), torch.tensor([1.0, 1.0]), kl=0.0)  # two responses, one visit
    best = (0.96 * (0.96 * 4 + 1) + 2) / (0.96 * (0.96 * 8 + 1) + 2)
    assert tracker.read(keys(9, 3)).tolist() == pytest.approx([(best + bad) / 2, best])


def test_a_visit_forgets_by_the_divergence_since_the_last_one() -> None:
    """0.01 between its two visits, one iteration without it among them; the divergence after a visit is its own."""
    tracker = PromptTracker()
    tracker.update(keys(1), torch.tensor([1.0]), kl=0.004)
    tracker.update(keys(2), torch.tensor([1.0]), kl=0.006)
    alpha, beta = 0.96 * 4 + 1, 0.96 * 4
    metrics = tracker.update(keys(1), torch.tensor([0.0]), kl=5.0)
    rho = 2 ** (-0.01 / 0.06)
    assert tracker.read(keys(1)).tolist() == pytest.approx([rho * alpha / (rho * (alpha + beta) + 1)])
    assert metrics == {"tracker/prompts": 2, "tracker/seen": 1, "tracker/rho": pytest.approx(rho)}


def test_neither_order_nor_ranks_matter_and_the_state_can_be_restored() -> None:
    g = torch.Generator().manual_seed(0)
    one, other = PromptTracker(), PromptTracker()
    for _ in range(20):
        prompts = torch.randint(0, 40, (16,), generator=g) * 2**50 - 2**55
        rewards, order = torch.randint(0, 2, (16,), generator=g).float(), torch.randperm(16, generator=g)
        one.update(prompts, rewards, 0.002)
        other.update(prompts[order], rewards[order], 0.002)
    restored = PromptTracker()
    restored.load_state_dict(other.state_dict())
    for name, value in one.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name
