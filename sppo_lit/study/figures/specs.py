"""Table of the figures: name → how it is drawn and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sppo_lit.study.figures import calibration, efficiency, group_advantage, memory, tail


class FigureSpec(NamedTuple):
    """How a figure is drawn.

    Attributes:
        draw: (sources, PNG to write) → numbers of the figure; an SVG is written beside the PNG.
        about: description in one line.
        reads: kind of its sources: training runs (or folders that contain them), evaluations (run folders or JSONL
            files), or nothing.
        field: field that the responses of an evaluation must have.
    """

    draw: Callable[[Sequence[Path], Path], dict[str, Any]]
    about: str
    reads: Literal["runs", "evaluations", "nothing"] = "runs"
    field: str = ""


FIGURES = {
    "efficiency": FigureSpec(efficiency.draw, "held-out accuracy against training time and sampled tokens"),
    "ablation": FigureSpec(efficiency.draw_ablation, "the same of SPPO, PPO and PPO+BCE"),
    "memory": FigureSpec(memory.draw, "peak memory of each phase of an iteration"),
    "group_advantage": FigureSpec(group_advantage.draw, "GRPO's advantage of a response against A = R − V", "nothing"),
    "calibration": FigureSpec(calibration.draw, "V(prompt) against Avg@k", "evaluations", "value"),
    "tail": FigureSpec(
        tail.draw, "where along a response a token-level critic knows its outcome", "evaluations", "values"
    ),
}
