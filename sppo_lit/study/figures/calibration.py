"""Calibration of a critic: V(prompt) against Avg@k (paper, figure 7)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import saved_figure
from sppo_lit.study.responses import Record, labels, read, samples
from sppo_lit.training.metrics import auroc, avg_at_k, brier
from sppo_lit.utils.plotting import BLUE, GREY, ORANGE

BINS = 10
TICKS = [0.0, 0.5, 1.0]
FACTS: Any = {"fontsize": 7.5, "fontweight": "normal"}
"""Numbers above a panel: inside, they would lie over data."""


def measure(values: Tensor, correct: Tensor, levels: Sequence[int | None]) -> dict[str, Any]:
    """How well V predicts which problems are solved.

    Correlations are over problems, with their Avg@k; the other numbers over single samples, each predicted by the V of
    its problem. The level alone as predictor is the mean Avg@k of the *other* problems of that level.

    Args:
        values: [N] V(prompt) of each problem.
        correct: [N, k], 1 where the sample is correct.
        levels: difficulty of each problem, N of them; None if unknown.

    Returns:
        Numbers by name: problems, k, base_rate (mean Avg@k), pearson, spearman, brier, ece (10 equal bins), auroc;
        brier_base_rate (of always predicting the base rate) and brier_skill (1 − brier / brier_base_rate); reliability,
        one (mean V, mean accuracy, problems) for each bin that is not empty; and, if there are at least two levels,
        level_pearson, level_brier, level_auroc and brier_skill_over_level of the level alone, and
        pearson_within_levels, that of V with Avg@k after each level's mean is subtracted from both.
    """
    k = correct.shape[1]
    success = avg_at_k(correct)
    probabilities = values.double().clamp(0, 1)  # a critic trained on squared errors may leave [0, 1]
    curve = reliability(probabilities, success)
    score, always = _brier(probabilities, correct), _brier(success.mean().expand(len(success)), correct)
    numbers: dict[str, Any] = {
        "problems": len(success),
        "k": k,
        "base_rate": float(success.mean()),
        "pearson": correlation(values, success),
        "spearman": correlation(values, success, ranks=True),
        "brier": score,
        "brier_base_rate": always,
        "brier_skill": 1 - score / always if always else math.nan,
        "ece": sum(n * abs(v - s) for v, s, n in curve) / len(success),
        "auroc": auroc(values.repeat_interleave(k), correct.flatten()),
        "reliability": curve,
    }
    if len(set(levels)) > 1 and None not in levels:
        group = torch.tensor([sorted(set(levels)).index(level) for level in levels])  # type: ignore[type-var]
        others = leave_one_out(success, group)
        level_score = _brier(others, correct)
        numbers |= {
            "level_pearson": correlation(others, success),
            "level_brier": level_score,
            "level_auroc": auroc(others.repeat_interleave(k), correct.flatten()),
            "brier_skill_over_level": 1 - score / level_score if level_score else math.nan,
            "pearson_within_levels": correlation(_centred(values.double(), group), _centred(success, group)),
        }
    return numbers


def correlation(x: Tensor, y: Tensor, ranks: bool = False) -> float:
    """Correlation of two samples; NaN if one of them is constant.

    Args:
        x: [N].
        y: [N].
        ranks: Spearman's instead of Pearson's correlation.
    """
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float((spearman_corrcoef if ranks else pearson_corrcoef)(x.double(), y.double()))


def reliability(values: Tensor, success: Tensor, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean V, mean accuracy, number of problems) of equally wide bins of V in [0, 1]; empty bins are left out.

    Args:
        values: [N] in [0, 1].
        success: [N] accuracies.
        bins: number of bins.
    """
    chosen = (values * bins).long().clamp(max=bins - 1)
    inside = [chosen == b for b in range(bins)]
    return [(float(values[m].mean()), float(success[m].mean()), int(m.sum())) for m in inside if m.any()]


def leave_one_out(success: Tensor, group: Tensor) -> Tensor:
    """Mean of the other members of each one's group, [N]; of all others if a group has one member.

    Args:
        success: [N] accuracies.
        group: [N] int64, index of the group from 0.
    """
    total = torch.zeros(int(group.max()) + 1, dtype=success.dtype).index_add(0, group, success)[group]
    count = group.bincount()[group]
    overall = (success.sum() - success) / max(len(success) - 1, 1)
    return torch.where(count > 1, (total - success) / (count - 1).clamp(min=1), overall)


def _centred(x: Tensor, group: Tensor) -> Tensor:
    total = torch.zeros(int(group.max()) + 1, dtype=x.dtype).index_add(0, group, x)
    return x - (total / group.bincount())[group]


def _brier(predictions: Tensor, correct: Tensor) -> float:
    return float(brier(predictions.repeat_interleave(correct.shape[1]), correct.flatten()))


def table(records: Sequence[Record], source: Path) -> tuple[Tensor, Tensor, list[int | None]]:
    """V [N], correctness [N, k] and levels of the problems of an evaluation; k is the smallest number of samples.

    Args:
        records: responses of the evaluation.
        source: where they are from, for messages.

    Raises:
        InputError: the evaluation has no values.
    """
    problems: dict[str, list[Record]] = {}
    for record in samples(records):
        problems.setdefault(record["problem"], []).append(record)
    if any(r.get("value") is None for group in problems.values() for r in group):
        raise InputError(
            f"{source}: no critic's values in it; evaluate with --model.evaluation.values true "
            "--model.evaluation.samples 64"
        )
    k = min(map(len, problems.values()))
    values = torch.tensor([sum(r["value"] for r in group) / len(group) for group in problems.values()]).double()
    correct = torch.tensor([[float(r["reward"] > 0.5) for r in group[:k]] for group in problems.values()])
    return values, correct, [group[0].get("level") for group in problems.values()]


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw the figure: for each source V against Avg@k with both distributions, and the reliability curve.

    Args:
        sources: files of evaluations, or run folders, with values and k samples per problem.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        Label of the source → numbers of `measure`.

    Raises:
        InputError: no such evaluation, no values in it, or matplotlib is not installed.
    """
    tables = {name: table(read(source), source) for name, source in labels(sources).items()}
    numbers = {name: measure(*data) for name, data in tables.items()}
    with saved_figure(out, 0.3 + 3.9 * len(tables), 7.4) as figure:
        shape = {"height_ratios": [0.18, 1, 1], "width_ratios": [1, 0.18] * len(tables)}
        axes = figure.subplots(3, 2 * len(tables), squeeze=False, gridspec_kw=shape)
        for column, (name, (values, correct, _)) in enumerate(tables.items()):
            _panel(axes[:, 2 * column : 2 * column + 2], name, values, avg_at_k(correct), numbers[name])
    return numbers


def _panel(axes: Any, name: str, values: Tensor, success: Tensor, numbers: dict[str, Any]) -> None:
    (above, corner), (scatter, side), (curve, empty) = axes
    corner.remove()
    empty.remove()
    bars: dict[str, Any] = {"color": BLUE, "alpha": 0.5}
    x, y = values.clamp(0, 1).tolist(), success.tolist()
    above.hist(x, range=(0, 1), bins=20, **bars)
    above.set_title(name)
    steps = min(numbers["k"], 20)  # a bar for each value that Avg@k can take
    edge = 0.5 / steps
    side.hist(y, range=(-edge, 1 + edge), bins=steps + 1, orientation="horizontal", **bars)
    above.set_xlim(-0.03, 1.03)
    side.set_ylim(-0.03, 1.03)
    for marginal in (above, side):
        marginal.grid(False)
        marginal.set(xticks=[], yticks=[])
        marginal.spines[:].set_visible(False)
    scatter.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    scatter.scatter(x, y, s=14, color=BLUE, alpha=0.45, linewidths=0)
    facts = [f"Pearson {numbers['pearson']:.3f}", f"Spearman {numbers['spearman']:.3f}"]
    if "level_pearson" in numbers:
        facts.append(f"level alone {numbers['level_pearson']:.3f}")
    scatter.set_title(" · ".join(facts), **FACTS)
    scatter.set_ylabel(f"Avg@{numbers['k']}")
    curve.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    curve.axhline(numbers["base_rate"], color=GREY, linewidth=0.8)
    predicted, observed, counts = zip(*numbers["reliability"], strict=True)
    curve.plot(predicted, observed, color=ORANGE)
    curve.scatter(predicted, observed, s=[12 + 200 * n / numbers["problems"] for n in counts], color=ORANGE)
    facts = [f"Brier {numbers['brier']:.3f} (base rate {numbers['brier_base_rate']:.3f})"]
    facts += [f"ECE {numbers['ece']:.3f}", f"AUROC {numbers['auroc']:.3f}"]
    curve.set_title(" · ".join(facts), **FACTS)
    curve.set_ylabel("accuracy of the bin")
    for axis in (scatter, curve):
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=TICKS, yticks=TICKS, xlabel="V(prompt)")
