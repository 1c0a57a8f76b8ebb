"""Metrics of responses (greedy accuracy, avg@k, pass@k, maj@k with intervals) and of the critic.

The functions are pure; `AccuracyAtK` gathers the samples of a problem from all ranks before it calls them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sppo_lit.types import Scored

NO_ANSWER = -1
GREEDY = -1
"""Sample index of the greedy response to a problem."""

Z95 = 1.959964  # 97.5 % quantile of the normal distribution


def avg_at_k(correct: Tensor) -> Tensor:
    """avg@k: the share of a problem's k samples that are correct.

    Args:
        correct: [N, k], 1 where the sample is correct.

    Returns:
        [N] float64 in [0, 1], one value per problem.
    """
    return correct.double().mean(dim=1)


def pass_at_k(correct: Tensor, k: int | None = None) -> Tensor:
    """pass@k: the probability that at least one of k samples is correct, 1 − C(n−c, k) / C(n, k), unbiased.

    Args:
        correct: [N, n], 1 where the sample is correct.
        k: number of samples, at most n; n by default.

    Returns:
        [N] float64 in [0, 1], one value per problem.

    Raises:
        ValueError: k is not in 1…n.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    n = correct.shape[1]
    k = n if k is None else k
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 to {n} samples of each problem")
    wrong = [n - int(c) for c in correct.sum(dim=1)]
    return torch.tensor([1 - math.comb(w, k) / math.comb(n, k) for w in wrong], dtype=torch.float64)


def maj_at_k(correct: Tensor, answers: Tensor) -> Tensor:
    """maj@k: the probability that the most frequent answer of the k samples is correct.

    Tied answers are equally likely to win. Samples without an answer win only if no sample has one.

    Args:
        correct: [N, k], 1 where the sample is correct.
        answers: [N, k] int64, equal numbers for equal answers of a problem, `NO_ANSWER` for none.

    Returns:
        [N] float64 in [0, 1], one value per problem.
    """
    votes = (answers[:, :, None] == answers[:, None, :]).sum(dim=2)
    votes = torch.where(answers == NO_ANSWER, 0, votes)
    # Tied answers have equally many samples, so the mean over samples is the mean over answers.
    winners = (votes == votes.max(dim=1, keepdim=True).values).double()
    return (correct.double() * winners).sum(dim=1) / winners.sum(dim=1)


def confidence_interval(scores: Tensor) -> float:
    """Half width of the 95 % interval of the mean over problems.

    Wilson's interval if every score is 0 or 1 (greedy, or k equal samples), so that its width is never 0; else the
    normal interval over problems, with the k samples of a problem as one cluster.

    Args:
        scores: [N] in [0, 1], one value per problem, e.g. of `avg_at_k`.

    Returns:
        Half width, in the unit of the scores; NaN without problems.
    """
    n = scores.numel()
    if n == 0:
        return math.nan
    scores = scores.double()
    mean = float(scores.mean())
    if n > 1 and bool(((scores != 0) & (scores != 1)).any()):
        return Z95 * float(scores.std()) / math.sqrt(n)
    spread = mean * (1 - mean) / n + Z95**2 / (4 * n**2)
    return Z95 * math.sqrt(spread) / (1 + Z95**2 / n)


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(targets − values) / Var(targets): 1 is perfect, 0 no better than a constant, NaN for equal targets.

    Args:
        values: [B] predictions.
        targets: [B] targets.

    Returns:
        Scalar float32.
    """
    values, targets = values.float(), targets.float()
    variance = targets.var(unbiased=False)
    return torch.where(variance > 0, 1 - (targets - values).var(unbiased=False) / variance, torch.nan)


def brier(values: Tensor, labels: Tensor) -> Tensor:
    """Brier score, the mean of (V − R)²: 0 is perfect, 0.25 what V = 0.5 always gets.

    Args:
        values: [B] probabilities of success (after the sigmoid).
        labels: [B] outcomes in [0, 1].

    Returns:
        Scalar float32.
    """
    return (values.float() - labels.float()).square().mean()


def auroc(scores: Tensor, labels: Tensor, strata: Tensor | None = None) -> float:
    """Area under the ROC curve: how often a success scores higher than a failure, ties counted half.

    Args:
        scores: [B], higher for more likely success.
        labels: [B], 1 for success, 0 for failure.
        strata: [B] int64; only pairs of the same stratum are compared. None compares all.

    Returns:
        In [0, 1], 0.5 for chance; NaN without a pair.
    """
    strata = torch.zeros_like(scores, dtype=torch.int64) if strata is None else strata
    won, pairs = 0.0, 0
    for stratum in strata.unique():
        inside, positive = strata == stratum, labels > 0.5
        good, bad = scores[inside & positive], scores[inside & ~positive].sort().values
        below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
        won += float((below + upto).sum()) / 2
        pairs += len(good) * len(bad)
    return won / pairs if pairs else math.nan


def stable_id(text: str) -> int:
    """A 62-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 2


def normalise_answer(answer: str) -> str:
    r"""The answer without typographic variants: spaces, dollar signs, \left and \right, \dfrac, a full stop."""
    for drop in (r"\left", r"\right", r"\!", r"\,", r"\;", "$"):
        answer = answer.replace(drop, "")
    answer = answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return "".join(answer.split()).rstrip(".")


def answer_id(answer: str | None) -> int:
    """`stable_id` of the normalised answer; `NO_ANSWER` if nothing, or only spaces, was extracted."""
    text = normalise_answer(answer or "")
    return stable_id(text) if text else NO_ANSWER


class AccuracyAtK(Metric):
    """Accuracy of one set of problems: greedy, avg@k, pass@k, maj@k, length and truncation.

    Responses may be spread over ranks and come in any order; a response seen by several ranks (same problem key and
    sample index) counts once. If problems have different numbers of samples, k is the smallest.
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Remove all responses."""
        super().reset()
        self.update([])  # a rank without problems still takes part in gathering, with the right shape and dtype

    def update(self, scored: Sequence[Scored]) -> None:
        """Add responses.

        Args:
            scored: any number of responses; `sample` is -1 for the greedy one.
        """
        rows = [
            (
                stable_id(s.problem.key),
                s.sample,
                int(s.verdict.reward > 0.5),
                answer_id(s.verdict.answer),
                s.tokens,
                int(s.finished),
            )
            for s in scored
        ]
        assert isinstance(self.rows, list)
        self.rows.append(torch.tensor(rows, dtype=torch.int64, device=self.device).reshape(-1, 6))

    def compute(self) -> dict[str, float]:
        """The metrics over all ranks.

        Returns:
            problems, k, length (mean tokens), truncation_rate; greedy and greedy_ci with greedy responses;
            avg_at_k, avg_at_k_ci, pass_at_k, maj_at_k with samples. Empty without responses.
        """
        rows = dim_zero_cat(self.rows).cpu()
        if rows.shape[0] == 0:
            return {}
        unique = {(r[0], r[1]): r for r in rows.tolist()}
        table = torch.tensor([unique[key] for key in sorted(unique)], dtype=torch.int64)
        greedy, sampled = table[table[:, 1] == GREEDY], table[table[:, 1] != GREEDY]
        counts = torch.unique_consecutive(sampled[:, 0], return_counts=True)[1].tolist()
        k = min(counts, default=0)
        result = {
            "problems": float(table[:, 0].unique().numel()),
            "k": float(k),
            "length": float(table[:, 4].double().mean()),
            "truncation_rate": 1 - float(table[:, 5].double().mean()),
        }
        if len(greedy):
            result |= {"greedy": float(greedy[:, 2].double().mean()), "greedy_ci": confidence_interval(greedy[:, 2])}
        if k:
            of_problem = torch.stack([part[:k] for part in sampled.split(counts)])
            correct, answers = of_problem[:, :, 2], of_problem[:, :, 3]
            average = avg_at_k(correct)
            result |= {
                "avg_at_k": float(average.mean()),
                "avg_at_k_ci": confidence_interval(average),
                "pass_at_k": float(pass_at_k(correct).mean()),
                "maj_at_k": float(maj_at_k(correct, answers).mean()),
            }
        return result


Result = dict[str, float]
"""Metrics of one validation set, see `AccuracyAtK.compute`."""

MEASURES = {"greedy": "greedy", "avg_at_k": "avg@{k}", "pass_at_k": "pass@{k}", "maj_at_k": "maj@{k}"}
"""Accuracies of a `Result` by key, as tables name them."""

MEAN = "mean"
"""Name of the mean over sets."""


def accuracy(result: Result) -> float:
    """Main metric of a set: greedy accuracy, or avg@k without greedy responses."""
    return result.get("greedy", result.get("avg_at_k", float("nan")))


def mean(results: dict[str, Result]) -> Result:
    """The unweighted mean over sets of their common metrics; ``problems`` is the sum.

    ``_ci`` is the interval of the mean, with sets taken as independent.
    """
    common = [key for key in next(iter(results.values())) if all(key in r for r in results.values())]
    by_key = {key: [r[key] for r in results.values()] for key in common}
    means = {
        key: math.hypot(*values) / len(values) if key.endswith("_ci") else sum(values) / len(values)
        for key, values in by_key.items()
    }
    return means | {"problems": sum(by_key["problems"])}


def with_mean(results: dict[str, Result]) -> dict[str, Result]:
    """Metrics by set; with several sets, followed by their `mean`."""
    return {**results, MEAN: mean(results)} if len(results) > 1 else results


def flatten(results: dict[str, Result]) -> Result:
    """Names and values to log.

    ``val/<set>/`` greedy, greedy_ci, avg_at_k, avg_at_k_ci, pass_at_k, maj_at_k, k, problems, length (tokens),
    truncation_rate; with several sets ``val/mean/`` the same, each set counted once; and ``val/accuracy``, the mean
    over sets of the greedy accuracy, or of avg@k without greedy responses. ``_ci`` is the half width of the
    95 % interval.
    """
    flat = {
        f"val/{file_name(name)}/{key}": value
        for name, result in with_mean(results).items()
        for key, value in result.items()
    }
    return flat | {"val/accuracy": sum(map(accuracy, results.values())) / len(results)}


def file_name(name: str) -> str:
    """The name of a data set as used in metric and file names."""
    return re.sub(r"[^\w.-]+", "_", name)


class ValidationResults:
    """Metrics of each validation set over all ranks.

    Args:
        names: names of the sets, in the order of their data loaders.
        device: device of this rank.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = list(names)
        self._metrics = {name: AccuracyAtK().to(device) for name in names}  # every rank has every set
        self._computed: dict[str, Result] | None = None

    def update(self, number: int, scored: Sequence[Scored]) -> None:
        """Add responses to problems of set `number`."""
        self._metrics[self._names[number]].update(scored)

    def compute(self) -> dict[str, Result]:
        """Metrics by set, without empty sets; computed once. Collective."""
        if self._computed is None:
            computed = {name: metric.compute() for name, metric in self._metrics.items()}
            self._computed = {name: result for name, result in computed.items() if result}
        return self._computed
