"""Variance of the policy gradient under each baseline at the same weights, beside what theory says of it.

A response with reward R, baseline b and score s = ∇ log π(response) gives the gradient (R − b)·s. Where |s|² tells
nothing of R beyond the prompt, its second moment is that of R − b times |s|²: p(1 − p) with a baseline that is right,
p(1 − p)·N/(N − 1) with the mean of N − 1 others, p(1 − p) + (V − p)² with V. Where incorrect responses have larger
scores, the best baseline is not p but the mean of R weighted by |s|². All are compared at equal sequences: the variance
of a minibatch times its sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sppo_lit.errors import InputError
from sppo_lit.study.statistics import RESAMPLES, Interval, draws, ends

PERMUTATIONS = 16
"""Partitions of a problem's responses into groups, over which groups are averaged."""

MINIBATCH, MINIBATCHES, SPLITS = 64, 200, 20
"""Sequences of a minibatch, minibatches, and random halves that they are divided among, for the cosine."""

SHRINK = (0.0, 0.25, 0.5, 0.75)
NOISE = (0.1, 0.2, 0.3, 0.4)
"""Artificial critics: p moved towards the mean of all problems, and p with noise of this standard deviation."""


@dataclass(frozen=True)
class Measured:
    """K responses to one problem.

    Attributes:
        rewards: [K] float64, 0 or 1.
        lengths: [K] float64, tokens.
        scores: [K, D] float32, projected ∇ log π.
        values: by critic V at the prompt.
        value_scores: by token-level critic [K, D], projected ∇ Σ_t V_t log π_t.
    """

    rewards: Tensor
    lengths: Tensor
    scores: Tensor
    values: dict[str, float]
    value_scores: dict[str, Tensor]

    @property
    def norms(self) -> Tensor:
        """|s|², [K] float64."""
        return self.scores.double().square().sum(dim=1)


class Gradients(NamedTuple):
    """Independent gradients of one problem under a baseline.

    Attributes:
        units: [U, D], each the mean over the N responses of a group.
        advantages: [U, N], of these responses.
        rows: [U, N] int64, which responses they are.
    """

    units: Tensor
    advantages: Tensor
    rows: Tensor


Estimator = Callable[[Measured, float, torch.Generator], Gradients]
"""(responses to a problem, mean reward of the other problems, random numbers) -> gradients of single draws."""


def read(folder: Path) -> list[Measured]:
    """Read a measurement of `callbacks.gradients.GradientSamples`.

    Raises:
        InputError: fewer than four problems in it.
    """
    files = sorted(folder.glob("*.pt")) if folder.is_dir() else []
    if len(files) < 4:
        raise InputError(f"{folder}: {len(files)} measured problems; give a folder of GradientSamples with at least 4")
    problems = []
    for file in files:
        record = torch.load(file, weights_only=True)
        problems.append(
            Measured(
                record["rewards"].double(),
                record["lengths"].double(),
                record["scores"],
                {name: float(v[0]) for name, v in record["values"].items()},
                record["value_scores"],
            )
        )
    return problems


def fixed(baseline: Callable[[Measured, float], float | Tensor]) -> Estimator:
    """Single responses with a baseline that does not depend on them."""

    def estimate(m: Measured, mean: float, generator: torch.Generator) -> Gradients:
        return single(m, m.rewards - baseline(m, mean))

    return estimate


def single(m: Measured, advantages: Tensor, units: Tensor | None = None) -> Gradients:
    """Each response by itself, with its advantage [K]; its gradient, if that is not A·s."""
    units = advantages[:, None].float() * m.scores if units is None else units
    return Gradients(units, advantages[:, None], torch.arange(len(advantages))[:, None])


def groups(size: int, advantage: Callable[[Tensor, Measured], Tensor]) -> Estimator:
    """Groups of responses; `advantage` maps rewards [G, N] to advantages of that shape."""

    def estimate(m: Measured, mean: float, generator: torch.Generator) -> Gradients:
        whole = len(m.rewards) // size * size
        orders = torch.stack([torch.randperm(len(m.rewards), generator=generator) for _ in range(PERMUTATIONS)])
        rows = orders[:, :whole].reshape(-1, size)
        advantages = advantage(m.rewards[rows], m)
        weights = torch.zeros(len(rows), len(m.rewards)).scatter(1, rows, advantages.float() / size)
        return Gradients(weights @ m.scores, advantages, rows)

    return estimate


def others(rewards: Tensor) -> Tensor:
    """Mean of the other rewards of a group, [G, N]."""
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def oracle(m: Measured) -> Tensor:
    """The mean reward of all other responses to the problem, [K]: p but for the noise of K − 1 of them."""
    return others(m.rewards[None])[0]


def weighted_oracle(m: Measured) -> Tensor:
    """Mean reward of the other responses weighted by their |s|², [K]: the baseline of least variance but for noise."""
    norms = m.norms
    return ((norms * m.rewards).sum() - norms * m.rewards) / (norms.sum() - norms).clamp(min=1e-12)


def by_token(name: str) -> Estimator:
    """A token-level critic at γ = λ = 1: R − V(s_t) at each token."""

    def estimate(m: Measured, mean: float, generator: torch.Generator) -> Gradients:
        units = m.rewards[:, None].float() * m.scores - m.value_scores[name]
        return single(m, m.rewards - m.values[name], units)

    return estimate


def estimators(problems: Sequence[Measured]) -> dict[str, Estimator]:
    """The baselines by name; those of critics if the measurement has some."""
    table: dict[str, Estimator] = {
        "no baseline": fixed(lambda m, mean: 0.0),
        "mean of all others": fixed(lambda m, mean: mean),
        "best: mean weighted by |s|²": fixed(lambda m, mean: weighted_oracle(m)),
        **{
            f"leave-one-out, N = {n}": groups(n, lambda r, m: r - others(r))
            for n in (2, 4, 8)
            if n <= len(problems[0].rewards)
        },
        "group mean, N = 8": groups(8, lambda r, m: r - r.mean(dim=1, keepdim=True)),
        "group mean / std, N = 8": groups(
            8, lambda r, m: (r - r.mean(dim=1, keepdim=True)) / (r.std(dim=1, keepdim=True) + 1e-6)
        ),
    }
    for name in problems[0].values:
        if name in problems[0].value_scores:
            table[f"V(s_t) of {name}"] = by_token(name)
        else:
            table[f"V of {name}"] = fixed(lambda m, mean, name=name: m.values[name])  # type: ignore[misc]
            table[f"mixed (w = ½, N = 4) of {name}"] = groups(
                4,
                lambda r, m, name=name: r - (m.values[name] + others(r)) / 2,  # type: ignore[misc]
            )
    return table


class Moments(NamedTuple):
    """What one problem adds to the variance under a baseline.

    Attributes:
        second: mean |gradient|² of a draw, times the sequences of a draw.
        advantage: mean A² of a response.
        weighted: mean A²|s|² of a response: the second moment without what the responses of a group share.
        mean: [D], mean gradient.
        size: N, sequences of a draw.
    """

    second: float
    advantage: float
    weighted: float
    mean: Tensor
    size: int


def moments(estimator: Estimator, problems: Sequence[Measured]) -> list[Moments]:
    """Moments of each problem under a baseline; independent of the others' but for their mean reward."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.stack([m.rewards.mean() for m in problems])
    found = []
    for i, m in enumerate(problems):
        mean = float((rewards.sum() - rewards[i]) / (len(problems) - 1))
        g = estimator(m, mean, generator)
        size, squares = g.advantages.shape[1], g.advantages.square()
        second = float(g.units.double().square().sum(dim=1).mean()) * size
        weighted = float((squares * m.norms[g.rows]).mean())
        found.append(Moments(second, float(squares.mean()), weighted, g.units.mean(dim=0), size))
    return found


def pairs(products: Tensor, weights: Tensor) -> Tensor:
    """Unbiased ⟨E a, E b⟩ from independent problems: the mean over pairs of different ones.

    Args:
        products: [P, P] inner products of problem i's mean a and problem j's mean b.
        weights: [R, P] how often each problem was drawn.

    Returns:
        [R].
    """
    same = (weights.square() * products.diagonal()).sum(dim=1)
    both = ((weights @ products) * weights).sum(dim=1) - same
    return both / (weights.sum(dim=1).square() - weights.square().sum(dim=1))


def replicate_weights(problems: int) -> Tensor:
    """[1 + R, P] float64: how often each problem is in a bootstrap replicate; the first row has each once."""
    [rows] = draws(problems)
    counts = torch.zeros(RESAMPLES, problems, dtype=torch.float64)
    counts.scatter_add_(1, torch.from_numpy(rows), torch.ones(rows.shape, dtype=torch.float64))
    return torch.cat([torch.ones(1, problems, dtype=torch.float64), counts])


def with_interval(values: Tensor) -> Interval:
    """The estimate and its interval of [1 + R] values, the first of which is the estimate."""
    return (float(values[0]), *ends(values[1:].numpy()))


class Spread(NamedTuple):
    """Variances over [1 + R] replicates.

    Attributes:
        right: of a gradient with the right baseline p, per sequence.
        right_advantage: p(1 − p).
        squared_mean: |E gradient|².
        oracle: moments of each problem with the mean of all its other responses.
    """

    right: Tensor
    right_advantage: Tensor
    squared_mean: Tensor
    oracle: list[Moments]


def spread(problems: Sequence[Measured], weights: Tensor) -> Spread:
    """The variance with p itself: (R − p)²|s|² without bias from p and p² as the K − 1 other responses tell them."""
    found = moments(fixed(lambda m, mean: oracle(m)), problems)
    k = len(problems[0].rewards)
    means = torch.stack([m.mean for m in found]).double()
    squared = pairs(means @ means.T, weights)
    second = _mean([float((_squared_error(m) * m.norms).mean()) for m in problems], weights)
    return Spread(second - squared, _mean([m.advantage for m in found], weights) * (k - 1) / k, squared, found)


def _squared_error(m: Measured) -> Tensor:
    """(R − p)² of each response without bias, [K]: p and p² are estimated from the others."""
    k = len(m.rewards)
    total = m.rewards.sum() - m.rewards
    p, p2 = total / (k - 1), (total.square() - total) / ((k - 1) * (k - 2))
    return m.rewards - 2 * m.rewards * p + p2  # R² = R


def _mean(values: Sequence[float], weights: Tensor) -> Tensor:
    return weights @ torch.tensor(values, dtype=torch.float64) / weights.sum(dim=1)


def excess(problems: Sequence[Measured], name: str) -> Callable[[Tensor], Tensor] | None:
    """What theory adds to p(1 − p) under a baseline: (weights) -> [1 + R]; None where it says nothing.

    Estimates without bias: p(1 − p) as p̂(1 − p̂)·K/(K − 1), (V − p)² as (V − p̂)² − p̂(1 − p̂)/(K − 1).
    """
    k = len(problems[0].rewards)
    p = [float(m.rewards.mean()) for m in problems]
    right = [q * (1 - q) * k / (k - 1) for q in p]

    def error(values: Sequence[float]) -> list[float]:
        return [(v - q) ** 2 - q * (1 - q) / (k - 1) for v, q in zip(values, p, strict=True)]

    critic = name.partition(" of ")[2]
    if name == "no baseline":
        return lambda w: _mean(error([0.0] * len(p)), w)
    if name == "mean of all others":
        others_of = [(sum(p) - q) / (len(p) - 1) for q in p]
        return lambda w: _mean(error(others_of), w)
    if name.startswith("V of"):
        return lambda w: _mean(error([m.values[critic] for m in problems]), w)
    if name.startswith("mixed"):
        return lambda w: _mean(error([m.values[critic] for m in problems]), w) / 4 + _mean(right, w) / (4 * 3)
    if " N = " in name and "std" not in name:
        n = int(name.rpartition(" ")[2])
        return lambda w: _mean(right, w) / (n - 1)
    return None


def measure(problems: Sequence[Measured]) -> dict[str, Any]:
    """Compare the baselines, with 95 % intervals by a bootstrap over problems.

    Gradients that are shrunk on average (the group's mean includes the response itself, the group's standard deviation
    divides) are scaled to the same mean first, else less signal would pass for less noise.

    Args:
        problems: the measurement.

    Returns:
        problems; samples; mean_reward; tokens; signal_to_noise, |mean|² of the gradient by the variance of a sequence;
        mean |s|² of incorrect responses by that of correct ones; baselines, by name: variance of the gradient per
        sequence in units of that with p; theory of it if |s|² told nothing of R; alone, the variance without what
        the responses of a group share; mean squared advantage in units of p(1 − p); scale, the mean gradient in units
        of the true one, where it is not 1; and cosine of a minibatch's gradient to the mean of a large sample.
        horizons, thirds of the problems by length: tokens, right (variance with p, per sequence) and the variance of
        each baseline. critics, artificial ones: theory, variance and mean squared advantage.

    Raises:
        InputError: the responses to no problem differ in their reward.
    """
    if all(len(m.rewards.unique()) == 1 for m in problems):
        raise InputError("gradient_variance: no problem has correct and incorrect responses; measure others, or more")
    weights = replicate_weights(len(problems))
    base = spread(problems, weights)
    rows: dict[str, dict[str, Any]] = {}
    table = estimators(problems)
    for name, estimator in table.items():
        found = moments(estimator, problems)
        scale = _scale(name, found, base, weights)
        adds = excess(problems, name)
        squared = _mean([m.advantage for m in found], weights) / scale**2
        rows[name] = {
            "variance": with_interval(_variance(found, scale, base, weights)),
            "theory": with_interval(1 + adds(weights) / base.right_advantage) if adds else None,
            "alone": with_interval(_mean([m.weighted for m in found], weights) / scale**2 / base.right),
            "squared_advantage": with_interval(squared / base.right_advantage),
            "scale": with_interval(scale) if name.startswith("group") else None,
            "cosine": cosine(estimator, problems, base),
        }
    right, wrong = (
        _mean([float(((m.rewards == r) * m.norms).mean()) for m in problems], weights)
        / _mean([float((m.rewards == r).double().mean()) for m in problems], weights)
        for r in (1, 0)
    )
    return {
        "problems": len(problems),
        "samples": len(problems[0].rewards),
        "mean_reward": float(torch.stack([m.rewards.mean() for m in problems]).mean()),
        "tokens": float(torch.stack([m.lengths.mean() for m in problems]).mean()),
        "signal_to_noise": with_interval(base.squared_mean / base.right),
        "squared_score_of_incorrect_by_correct": with_interval(wrong / right),
        "baselines": rows,
        "horizons": horizons(problems, table),
        "critics": critics(problems, weights, base),
    }


def _scale(name: str, found: Sequence[Moments], base: Spread, weights: Tensor) -> Tensor:
    """Mean gradient in units of the true one, [1 + R]."""
    if "std" in name:
        means, true = (torch.stack([m.mean for m in part]).double() for part in (found, base.oracle))
        return pairs(means @ true.T, weights) / base.squared_mean
    size = found[0].size
    return torch.full_like(base.right, (size - 1) / size if name.startswith("group mean") else 1.0)


def _variance(found: Sequence[Moments], scale: Tensor, base: Spread, weights: Tensor) -> Tensor:
    """Variance of a gradient per sequence, in units of that with p, [1 + R]."""
    second = _mean([m.second for m in found], weights) / scale**2
    return (second - found[0].size * base.squared_mean) / base.right


def horizons(problems: Sequence[Measured], table: dict[str, Estimator]) -> dict[str, dict[str, Any]]:
    """The comparison among short, middle and long responses, each third of the problems by itself."""
    ordered = sorted(problems, key=lambda m: float(m.lengths.mean()))
    third = len(ordered) // 3
    result: dict[str, dict[str, Any]] = {}
    for name, part in zip(
        ("short", "middle", "long"), (ordered[:third], ordered[third : 2 * third], ordered[2 * third :]), strict=True
    ):
        if len(part) < 2:
            continue
        weights = replicate_weights(len(part))
        base = spread(part, weights)
        row: dict[str, Any] = {
            "tokens": float(torch.stack([m.lengths.mean() for m in part]).mean()),
            "mean_reward": float(torch.stack([m.rewards.mean() for m in part]).mean()),
            "right": with_interval(base.right),
        }
        for label, estimator in table.items():
            if "std" not in label:
                found = moments(estimator, part)
                row[label] = with_interval(_variance(found, _scale(label, found, base, weights), base, weights))
        result[name] = row
    return result


def critics(problems: Sequence[Measured], weights: Tensor, base: Spread) -> dict[str, dict[str, Any]]:
    """Artificial critics that are wrong in known ways: theory and variance."""
    k = len(problems[0].rewards)
    p = torch.stack([m.rewards.mean() for m in problems])
    others_of = (p.sum() - p) / (len(p) - 1)
    apart = ((p - others_of) ** 2 - p * (1 - p) / (k - 1)).tolist()
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, estimator: Estimator, adds: Tensor) -> None:
        found = moments(estimator, problems)
        one = torch.ones_like(base.right)
        theory = 1 + adds / base.right_advantage
        rows[name] = {
            "theory": with_interval(theory),
            "variance": with_interval(_variance(found, one, base, weights)),
            "squared_advantage": with_interval(_mean([m.advantage for m in found], weights) / base.right_advantage),
        }

    for share in SHRINK:
        mix = fixed(lambda m, mean, share=share: mean + share * (oracle(m) - mean))  # type: ignore[misc]
        noise = share**2 * base.right_advantage / (k - 1)
        add(f"p shrunk to {share:.0%}", mix, (1 - share) ** 2 * _mean(apart, weights) + noise)
    for sigma in NOISE:
        add(f"p with noise {sigma:g}", noisy(sigma), sigma**2 + base.right_advantage / (k - 1))
    return rows


def noisy(sigma: float) -> Estimator:
    """The oracle with normal noise."""

    def estimate(m: Measured, mean: float, generator: torch.Generator) -> Gradients:
        noise = sigma * torch.randn(len(m.rewards), generator=generator, dtype=torch.float64)
        return single(m, m.rewards - oracle(m) - noise)

    return estimate


def cosine(estimator: Estimator, problems: Sequence[Measured], base: Spread) -> Interval:
    """Cosine of the gradient of a minibatch to the mean gradient of the other half of the problems.

    The large sample is itself noisy, which lowers all cosines alike.

    Returns:
        Mean over minibatches of many random halves, and its 95 % interval, from how much halves differ.
    """
    generator = torch.Generator().manual_seed(1)
    rewards = torch.stack([m.rewards.mean() for m in problems])
    units: list[Tensor] = []
    size = 1
    for i, m in enumerate(problems):
        g = estimator(m, float((rewards.sum() - rewards[i]) / (len(problems) - 1)), generator)
        size = g.advantages.shape[1]
        units.append(g.units)
    means, half = [], len(problems) // 2
    for _ in range(SPLITS):
        order = torch.randperm(len(problems), generator=generator).tolist()
        large = torch.stack([base.oracle[i].mean for i in order[half:]]).mean(dim=0)
        which = torch.randint(half, (MINIBATCHES // SPLITS, max(1, MINIBATCH // size)), generator=generator)
        at = torch.randint(len(units[0]), which.shape, generator=generator)
        drawn = [
            sum((units[order[i]][j] for i, j in zip(rows, columns, strict=True)), torch.zeros_like(large))
            for rows, columns in zip(which.tolist(), at.tolist(), strict=True)
        ]
        means.append(float(torch.nn.functional.cosine_similarity(torch.stack(drawn), large[None]).mean()))
    values = torch.tensor(means, dtype=torch.float64)
    mean, half_width = float(values.mean()), 1.96 * float(values.std())
    return mean, mean - half_width, mean + half_width
