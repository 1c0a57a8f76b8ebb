"""GRPO's expected advantage in a group of N responses against A = R − V (paper, figure 2), as binomial sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo_lit.study.figures.drawing import percent_axis, saved_figure
from sppo_lit.study.runs import LOOKS

N = 8
EPS = 1e-6


def group_advantages(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """GRPO's advantage in a group with c = 0 … n correct responses: (R − mean) / (sample std + 1e-6).

    Args:
        n: size of the group.

    Returns:
        [n + 1] of a correct response (NaN for c = 0) and [n + 1] of an incorrect one (NaN for c = n).
    """
    share = np.arange(n + 1) / n
    deviation = np.sqrt(share * (1 - share) * n / (n - 1))
    right, wrong = (1 - share) / (deviation + EPS), -share / (deviation + EPS)
    right[0] = wrong[n] = np.nan
    return right, wrong


def expected(p: np.ndarray, n: int = N) -> dict[str, np.ndarray]:
    """Expected advantages for a problem that is solved with probability p.

    Args:
        p: [M] success probabilities.
        n: size of the group.

    Returns:
        [M] each: correct and incorrect, the expected advantage of a response given that it is correct or incorrect (the
        number of correct ones among the other n − 1 is binomial); magnitude, the expected |A| of any response;
        zero_gradient, the probability that all n rewards are equal; and value_correct, value_incorrect and
        value_magnitude, the same for A = R − V with V = p.
    """
    right, wrong = group_advantages(n)
    others = np.stack([math.comb(n - 1, k) * p**k * (1 - p) ** (n - 1 - k) for k in range(n)])  # [n, M]
    correct, incorrect = right[1:] @ others, wrong[:-1] @ others
    return {
        "correct": correct,
        "incorrect": incorrect,
        "magnitude": p * correct - (1 - p) * incorrect,
        "zero_gradient": p**n + (1 - p) ** n,
        "value_correct": 1 - p,
        "value_incorrect": -p,
        "value_magnitude": 2 * p * (1 - p),
    }


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: expected advantages, their magnitude, and groups without gradient.

    Args:
        sources: not used; all figures are drawn by a function of this form.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Success probability → numbers of `expected`, for some probabilities.

    Raises:
        InputError: matplotlib is not installed.
    """
    p = np.linspace(0, 1, 401)
    curves = expected(p)
    group, value = LOOKS["grpo"][0], LOOKS["sppo"][0]
    with saved_figure(out, 9.4, 3.2) as figure:
        advantage, magnitude, zero_gradient = figure.subplots(1, 3)
        advantage.set_title("Advantage of a response")
        for name, style in (("correct", "-"), ("incorrect", "--")):
            advantage.plot(p, curves[name], style, color=group, label=f"GRPO, N = {N}: {name}")
            advantage.plot(p, curves[f"value_{name}"], style, color=value, label=f"A = R − V: {name}")
        advantage.axhline(0, color="#999999", linewidth=0.8)
        magnitude.set_title("Expected |A|")
        magnitude.plot(p, curves["magnitude"], color=group)
        magnitude.plot(p, curves["value_magnitude"], color=value)
        zero_gradient.set_title(f"Groups without gradient (N = {N})")
        zero_gradient.plot(p, curves["zero_gradient"], color=group)
        percent_axis(zero_gradient.yaxis)
        for axis in (advantage, magnitude, zero_gradient):
            axis.set(xlim=(0, 1), xlabel="success probability p")
        figure.legend(loc="outside lower center", ncols=4)
    selected = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    numbers = expected(selected)
    return {f"p = {x:g}": {name: float(v[i]) for name, v in numbers.items()} for i, x in enumerate(selected)}
