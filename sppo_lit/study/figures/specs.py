"""Table of the figures: name → how it is drawn and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from sppo_lit.study.figures import (
    aggregates,
    calibration,
    efficiency,
    episodes,
    film,
    gradient_variance,
    group_advantage,
    memory,
    sampling_cost,
    studies,
    tail,
)


class FigureSpec(NamedTuple):
    """How a figure is drawn.

    Attributes:
        draw: (sources, PNG to write) → numbers of the figure; an SVG is written beside the PNG.
        about: description in one line.
        reads: kind of its sources: training runs (or folders that contain them, or archives), those of several studies,
            or of the control benchmark; runs of it, evaluations (run folders or JSONL files), the folder of a
            measurement of gradients, or nothing.
        field: field that the responses of an evaluation must have.
        units: name of a number → its unit in tables (`tables.format_value`).
        compares: with a baseline: `draw` takes its label as a third argument, None for that of the study.
    """

    draw: Callable[..., dict[str, Any]]
    about: str
    reads: Literal["runs", "studies", "control studies", "control runs", "evaluations", "gradients", "nothing"] = "runs"
    field: str = ""
    units: Mapping[str, str] = MappingProxyType({})
    compares: bool = False


FIGURES = {
    "efficiency": FigureSpec(
        efficiency.draw,
        "held-out accuracy against training time and sampled tokens",
        units=efficiency.NUMBERS,
        compares=True,
    ),
    "ablation": FigureSpec(efficiency.draw_ablation, "the same of SPPO, PPO and PPO+BCE", units=efficiency.NUMBERS),
    "studies": FigureSpec(
        studies.draw,
        "held-out accuracy against training time, a panel for each study",
        "studies",
        units=aggregates.NUMBERS,
    ),
    "episodes": FigureSpec(
        episodes.draw,
        "success against episodes, a panel for each study of the control benchmark",
        "control studies",
        units=episodes.NUMBERS,
    ),
    "film": FigureSpec(
        film.draw,
        "an episode before and after training, as a strip of drawings",
        "control runs",
        units=film.NUMBERS,
    ),
    "aggregates": FigureSpec(
        aggregates.draw,
        "scores over seeds, probability of improvement and speed-up, with 95 % bootstrap intervals",
        units=aggregates.NUMBERS,
        compares=True,
    ),
    "sampling_cost": FigureSpec(
        sampling_cost.draw,
        "the comparison if sampling cost 1, 3 or 10 times as much as here",
        units=sampling_cost.NUMBERS,
        compares=True,
    ),
    "memory": FigureSpec(memory.draw, "peak memory of each phase of an iteration", units=memory.NUMBERS),
    "group_advantage": FigureSpec(
        group_advantage.draw,
        "GRPO's advantage of a response against A = R − V",
        "nothing",
        units={"zero_gradient": "%"},
    ),
    "gradient_variance": FigureSpec(
        gradient_variance.draw, "variance of the policy gradient under each baseline", "gradients"
    ),
    "calibration": FigureSpec(
        calibration.draw, "V(prompt) against Avg@k", "evaluations", "value", units={"base_rate": "%"}
    ),
    "tail": FigureSpec(
        tail.draw,
        "where along a response a token-level critic knows its outcome",
        "evaluations",
        "values",
        units=tail.NUMBERS,
    ),
}
