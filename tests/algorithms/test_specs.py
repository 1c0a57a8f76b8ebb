"""The table of algorithms: what a recipe may name must be whole, or a run fails hours in."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from sppo_lit.algorithms.advantages import Outcomes, whiten
from sppo_lit.algorithms.masking import Aggregation, response_mask
from sppo_lit.algorithms.specs import ALGORITHMS, AlgorithmSpec


@pytest.mark.parametrize("spec", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_every_row_can_be_trained(spec: AlgorithmSpec) -> None:
    assert spec.title and spec.samples_per_prompt >= 1 and spec.aggregation in get_args(Aggregation)
    assert (spec.critic == "none") == (spec.critic_loss is None)
    shape = (4, 3) if spec.critic == "token" else (4,)
    if spec.critic_loss is not None:
        loss = spec.critic_loss(torch.zeros(shape), torch.ones(shape), torch.zeros(shape), 0.5)
        assert loss.shape == shape and bool((loss >= 0).all())
    values = spec.link(torch.zeros(shape))
    outcomes = Outcomes(torch.tensor([1.0, 0, 0, 0]), values, torch.tensor([3, 1, 2, 3]), 2, torch.full((4,), 0.5))
    advantages = spec.advantage(outcomes)
    assert advantages.shape in {shape, (4, 3)} and advantages.dtype == torch.float32
    assert float(advantages.reshape(4, -1)[0, 0]) > 0, "the only correct response"
    if spec.whiten:
        mask = response_mask(outcomes.lengths, 3)
        advantages = whiten(advantages, mask if advantages.ndim == 2 else torch.ones(4, dtype=torch.bool))
    assert float(advantages.reshape(4, -1)[1, 0]) < 0, "a wrong one: something is compared with"


def test_sequence_level_ppo_is_as_in_the_paper() -> None:
    spec = ALGORITHMS["sppo"]
    assert (spec.critic, spec.samples_per_prompt, spec.aggregation) == ("scalar", 1, "token-mean")
    rewards, values = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.9, 0.9, 0.9])
    outcomes = Outcomes(rewards, values, torch.ones(3, dtype=torch.int64))
    assert torch.allclose(spec.advantage(outcomes), torch.full((3,), 0.1)), "neither centred nor scaled"
