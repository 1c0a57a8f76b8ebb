"""What to expect of a group: exact sums against every possible group."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from sppo_lit.algorithms.advantages import group_normalised
from sppo_lit.study.figures.group_advantage import draw, expected

N = 5


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_against_every_possible_group(p: float) -> None:
    """With the advantages that training uses."""
    groups = torch.tensor(list(product((0.0, 1.0), repeat=N)))
    chance = (p**groups * (1 - p) ** (1 - groups)).prod(dim=1).double()
    advantages = group_normalised(groups.flatten(), N).reshape(groups.shape).double()
    right = groups[:, 0] == 1  # by symmetry the first response stands for all
    found = {name: float(v[0]) for name, v in expected(np.array([p]), N).items()}
    for name, chosen, share in (("correct", right, p), ("incorrect", ~right, 1 - p)):
        if share > 0:
            mean = float((chance * advantages[:, 0])[chosen].sum() / chance[chosen].sum())
            assert found[name] == pytest.approx(mean, abs=1e-5), name
    assert found["magnitude"] == pytest.approx(float((chance * advantages.abs().mean(dim=1)).sum()), abs=1e-5)
    none = (advantages == 0).all(dim=1)
    assert found["zero_gradient"] == pytest.approx(float(chance[none].sum()), abs=1e-6)
    assert found["value_magnitude"] == pytest.approx(2 * p * (1 - p))


def test_figure(tmp_path: Path) -> None:
    numbers = draw([], tmp_path / "g.png")
    assert (tmp_path / "g.png").is_file() and (tmp_path / "g.svg").is_file()
    assert numbers["p = 0.5"]["zero_gradient"] == pytest.approx(2 / 2**8)
