"""The table of algorithms: what a recipe may name must be whole, or a run fails hours in."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from sppo_lit.algorithms.masking import Aggregation
from sppo_lit.algorithms.specs import ALGORITHMS, AlgorithmSpec


@pytest.mark.parametrize("spec", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_every_row_can_be_trained(spec: AlgorithmSpec) -> None:
    assert spec.title and spec.samples_per_prompt >= 1 and spec.aggregation in get_args(Aggregation)
    assert (spec.critic == "none") == (spec.critic_loss is None)
    if spec.critic == "scalar":
        assert spec.critic_loss is not None
        loss = spec.critic_loss(torch.zeros(3), torch.tensor([0.0, 1.0, 0.5]))
        assert loss.shape == (3,) and bool((loss >= 0).all())
        advantages = spec.advantage(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
        assert advantages.shape[0] == 2 and advantages.dtype == torch.float32


def test_sequence_level_ppo_is_as_in_the_paper() -> None:
    spec = ALGORITHMS["sppo"]
    assert (spec.critic, spec.samples_per_prompt, spec.aggregation) == ("scalar", 1, "token-mean")
    rewards, values = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.9, 0.9, 0.9])
    assert torch.allclose(spec.advantage(rewards, values), torch.full((3,), 0.1)), "neither centred nor scaled"
