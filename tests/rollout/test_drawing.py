"""One token at a time: the right distribution, the right truncation, never an impossible token."""

from __future__ import annotations

import torch

from sppo_lit.rollout.drawing import draw, truncate
from sppo_lit.types import Sampling


def test_frequencies_match_the_softmax() -> None:
    torch.manual_seed(0)
    logits, n = torch.randn(12) * 2, 100_000
    u = torch.rand(n, dtype=torch.float64)
    for temperature in (0.6, 1.0, 1.7):
        tokens, logprobs = draw(logits.expand(n, -1), u, Sampling(temperature=temperature))
        expected = (logits.double() / temperature).softmax(-1)
        counts = tokens.bincount(minlength=12)
        assert ((counts - n * expected) ** 2 / (n * expected)).sum() < 31.3, "0.1 % point of 11 degrees of freedom"
        assert torch.allclose(logprobs.double(), expected.log()[tokens], atol=1e-6)


def test_a_token_of_zero_probability_is_never_drawn() -> None:
    """At both ends of [0, 1), in runs of zeros at the beginning, in the middle and at the end."""
    logits = torch.full((1, 9), -torch.inf)
    logits[0, [2, 5, 6]] = torch.tensor([0.0, -1.0, 2.0])
    just_below_one = 1 - 2.0**-53
    u = torch.cat([torch.tensor([0.0, 5e-324, just_below_one]), torch.rand(5000)]).double()
    u[2] = just_below_one
    rows = logits.expand(len(u), -1)
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.5), Sampling(temperature=0.01)):
        tokens, logprobs = draw(rows, u, sampling)
        assert set(tokens.tolist()) <= {2, 5, 6}
        assert logprobs.isfinite().all()
    assert draw(rows[:3], u[:3], Sampling())[0].tolist() == [2, 2, 6]


def test_the_last_token_is_within_reach_despite_rounding() -> None:
    """Large vocabularies, where the float64 sum is not exactly what u = 1 - 2**-53 would be multiplied by."""
    torch.manual_seed(1)
    logits = torch.cat([torch.randn(64, 50_000) * 3, torch.full((64, 100), -torch.inf)], dim=1)
    u = torch.full((64,), 1 - 2.0**-53, dtype=torch.float64)
    tokens, logprobs = draw(logits, u, Sampling())
    assert tokens.max() < 50_000 and logprobs.isfinite().all()


def test_top_k_then_top_p_keep_the_nucleus() -> None:
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.05, 0.25], [0.2, 0.2, 0.2, 0.2, 0.2]])
    assert (truncate(weights, 2, 1.0) > 0).tolist() == [[False, True, False, False, True], [True, True] + [False] * 3]
    assert (truncate(weights, 0, 0.5) > 0).tolist() == [[False, True, False, False, True], [True] * 3 + [False] * 2]
    # After top-3 the masses are 0.4, 0.25 and 0.2 of 0.85: the first two have 76 %.
    assert (truncate(weights[:1], 3, 0.75) > 0).tolist() == [[False, True, False, False, True]]
    assert (truncate(weights[:1], 3, 0.80) > 0).tolist() == [[False, True, True, False, True]]
    assert (truncate(weights, 0, 1e-9) > 0).sum(-1).tolist() == [1, 1]
    assert torch.equal(truncate(weights, 9, 1.0), weights)


def test_truncation_changes_what_is_drawn_but_not_the_logprobs() -> None:
    torch.manual_seed(2)
    logits, n = torch.randn(15), 60_000
    u = torch.rand(n, dtype=torch.float64)
    full = (logits.double() / 0.7).softmax(-1)
    kept = full.argsort(descending=True)[:4]
    tokens, logprobs = draw(logits.expand(n, -1), u, Sampling(temperature=0.7, top_k=4))
    expected = full[kept] / full[kept].sum()
    counts = tokens.bincount(minlength=15)
    assert counts[kept].sum() == n
    assert ((counts[kept] - n * expected) ** 2 / (n * expected)).sum() < 16.3, "0.1 % point of 3 degrees of freedom"
    assert torch.allclose(logprobs.double(), full.log()[tokens], atol=1e-6)


def test_greedy_takes_the_most_likely_and_reports_it_at_temperature_one() -> None:
    torch.manual_seed(3)
    logits = torch.randn(50, 30).bfloat16()
    tokens, logprobs = draw(logits, None, Sampling(temperature=0, top_k=3, top_p=0.1))
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.float().log_softmax(-1).max(-1).values, atol=1e-6)
    assert logprobs.dtype == torch.float32
