"""The tail effect: where along a response a token-level critic knows its outcome (paper, figures 1 and 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import saved_figure
from sppo_lit.study.responses import Record, labels, read, samples
from sppo_lit.training.metrics import Z95, auroc
from sppo_lit.utils.plotting import BLUE, GREEN, GREY, ORANGE

POINTS = 101
"""Of the curves over relative position."""

LAST = 64
"""Tokens at the end of a response that are shown one by one."""

THRESHOLD = 0.75
"""AUROC above which correct and incorrect responses count as separated."""


NUMBERS = {"correct": "%", "separates_at": "%"}
"""Units of `measure`."""


@dataclass(frozen=True)
class Responses:
    """V(s_t) along R responses.

    Attributes:
        values: [T] of each response, one for each token.
        correct: [R], 1 where the response is correct.
        problem: [R] int64, index of the problem.
        level: [R] int64, index of the problem's difficulty; all equal if it is unknown.
    """

    values: list[Tensor]
    correct: Tensor
    problem: Tensor
    level: Tensor


def measure(responses: Responses, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Where V separates correct from incorrect responses.

    AUROC compares only responses to problems of one level: telling easy from hard problems does not count.

    Args:
        responses: responses with the critic's values.
        threshold: AUROC from which the two count as separated.

    Returns:
        Numbers by name: responses, correct (their share), tokens (mean length); relative, the curves over relative
        position (0 the first token, 1 the last), and last, those over the last tokens (0 the last one, −1 the one
        before), each a mapping of position, correct, correct_band, incorrect, incorrect_band (mean V and the half width
        of its 95 % interval, responses to one problem counted as one cluster), auroc, difference (of the means, in
        units of the pooled standard deviation); threshold; auroc_first and auroc_last; separates_at, the first relative
        position from which the AUROC stays at or above the threshold (None: never); tokens_before and tokens_after it.
    """
    position = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    lengths = torch.tensor([len(v) for v in responses.values])
    relative = torch.stack([v[(position * (len(v) - 1)).round().long()] for v in responses.values])
    back = torch.arange(-min(LAST, int(lengths.max())) + 1, 1)
    last = torch.stack([_from_end(v, len(back)) for v in responses.values])
    curves = _curves(relative, position, responses)
    start = stays_above(curves["auroc"], threshold)
    at = None if start is None else float(position[start])
    tokens = float(lengths.double().mean())
    return {
        "responses": len(lengths),
        "correct": float(responses.correct.double().mean()),
        "tokens": tokens,
        "relative": curves,
        "last": _curves(last, back, responses),
        "threshold": threshold,
        "auroc_first": curves["auroc"][0],
        "auroc_last": curves["auroc"][-1],
        "separates_at": at,
        "tokens_before": None if at is None else at * tokens,
        "tokens_after": None if at is None else (1 - at) * tokens,
    }


def stays_above(curve: Sequence[float], threshold: float) -> int | None:
    """First index from which the curve is at or above the threshold up to its end; None where its end is below."""
    below = [i for i, y in enumerate(curve) if not y >= threshold]  # NaN counts as below
    start = below[-1] + 1 if below else 0
    return start if start < len(curve) else None


def clustered_mean(values: Tensor, cluster: Tensor) -> tuple[float, float]:
    """Mean of [N] values and the half width of its 95 % interval, where values of one cluster are not independent.

    Args:
        values: [N].
        cluster: [N], index of each value's cluster.

    Returns:
        Mean (NaN without values) and half width (NaN with a single cluster).
    """
    if not len(values):
        return math.nan, math.nan
    mean = values.mean()
    _, group = cluster.unique(return_inverse=True)
    clusters = int(group.max()) + 1
    sums = torch.zeros(clusters, dtype=values.dtype).index_add(0, group, values - mean)
    correction = clusters / (clusters - 1) if clusters > 1 else math.nan
    return float(mean), Z95 * math.sqrt(float(sums.square().sum()) * correction) / len(values)


def _curves(matrix: Tensor, position: Tensor, responses: Responses) -> dict[str, list[float]]:
    """Curves over the P columns of V, [R, P], which is NaN where a response has no such token."""
    names = ("correct", "correct_band", "incorrect", "incorrect_band", "auroc", "difference")
    curves: dict[str, list[float]] = {"position": position.tolist(), **{name: [] for name in names}}
    for column in matrix.T:
        known = ~column.isnan()
        v, right, problem = column[known], responses.correct[known] > 0.5, responses.problem[known]
        good, bad = clustered_mean(v[right], problem[right]), clustered_mean(v[~right], problem[~right])
        area = auroc(v, right, responses.level[known])
        for name, number in zip(names, (*good, *bad, area, _difference(v[right], v[~right])), strict=True):
            curves[name].append(number)
    return curves


def _difference(good: Tensor, bad: Tensor) -> float:
    """Difference of the means in units of the pooled standard deviation; NaN where that is 0 or unknown."""
    n = len(good) + len(bad) - 2
    if len(good) < 2 or len(bad) < 2:
        return math.nan
    pooled = math.sqrt(float((len(good) - 1) * good.var() + (len(bad) - 1) * bad.var()) / n)
    return float(good.mean() - bad.mean()) / pooled if pooled else math.nan


def _from_end(values: Tensor, count: int) -> Tensor:
    """The last `count` values, NaN before the first."""
    kept = values[-count:]
    return torch.cat([torch.full((count - len(kept),), torch.nan, dtype=values.dtype), kept])


def table(records: Sequence[Record], source: Path) -> Responses:
    """The sampled responses of an evaluation.

    Args:
        records: responses of the evaluation.
        source: where they are from, for messages.

    Raises:
        InputError: no values along the responses, or all of them are correct, or none.
    """
    sampled = samples(records)
    if any(not r.get("values") for r in sampled):
        raise InputError(
            f"{source}: no critic's values along the responses; evaluate a run of a token-level critic (PPO) with "
            "--model.evaluation.values true"
        )
    correct = torch.tensor([float(r["reward"] > 0.5) for r in sampled])
    if not 0 < correct.sum() < len(correct):
        raise InputError(f"{source}: needs correct and incorrect responses; evaluate on problems of another difficulty")
    return Responses(
        [torch.tensor(r["values"], dtype=torch.float64) for r in sampled],
        correct,
        _indices([r["problem"] for r in sampled]),
        _indices([r.get("level") for r in sampled]),
    )


def _indices(names: Sequence[Any]) -> Tensor:
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([index[name] for name in names])


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: for each source the mean V along responses and over their last tokens, and its AUROC.

    Args:
        sources: files of evaluations, or run folders, with the values of a token-level critic.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Label of the source → numbers of `measure`.

    Raises:
        InputError: no such evaluation, no values in it, or matplotlib is not installed.
    """
    numbers = {name: measure(table(read(source), source)) for name, source in labels(sources).items()}
    with saved_figure(out, 15.5, 0.7 + 3.3 * len(numbers)) as figure:
        rows = figure.subplots(len(numbers), 4, squeeze=False, sharex="col", sharey="col")
        for axes, (name, row) in zip(rows, numbers.items(), strict=True):
            _row(axes, name, row)
        figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return numbers


def _row(axes: Any, name: str, numbers: dict[str, Any]) -> None:
    means, end, area, difference = axes
    relative, last, at = numbers["relative"], numbers["last"], numbers["separates_at"]
    for axis, curves in ((means, relative), (end, last)):
        for kind, color in (("correct", GREEN), ("incorrect", ORANGE)):
            x, y, band = (torch.tensor(curves[key]) for key in ("position", kind, f"{kind}_band"))
            axis.plot(x, y, color=color, label=kind)
            axis.fill_between(x, y - band, y + band, color=color, alpha=0.2, linewidth=0)
        axis.set_ylabel("V(s_t)")
    means.set_title(name)
    end.set(title="the last tokens", xlabel="tokens before the end")
    where = "never separated" if at is None else f"separated after {at:.0%} of the response"
    area.plot(relative["position"], relative["auroc"], color=BLUE)
    area.axhline(numbers["threshold"], color=GREY, linestyle="--", linewidth=0.9)
    area.set(
        title=where,
        ylabel="AUROC within level",
        ylim=(min(0.4, *filter(math.isfinite, relative["auroc"])) - 0.02, 1.02),
    )
    difference.plot(relative["position"], relative["difference"], color=BLUE)
    difference.axhline(0, color=GREY, linewidth=0.8)
    difference.set(title="correct − incorrect", ylabel="difference / pooled std")
    for axis in (means, area, difference):
        axis.set_xlabel("relative position in the response")
        if at is not None:
            axis.axvline(at, color=GREY, linestyle=":", linewidth=1.2)
