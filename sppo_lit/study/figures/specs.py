"""The figures of this project, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sppo_lit.study.figures import calibration, efficiency, group_advantage, memory, tail


class Figure(NamedTuple):
    """How a figure is drawn.

    Attributes:
        draw: (sources, PNG to write) -> its numbers; an SVG is written beside the PNG.
        about: one line.
        reads: what its sources are: training runs (or folders that hold them), evaluations (run folders or JSONL
            files), or nothing.
        field: of the responses of an evaluation, without which it cannot be drawn.
    """

    draw: Callable[[Sequence[Path], Path], dict[str, Any]]
    about: str
    reads: Literal["runs", "evaluations", "nothing"] = "runs"
    field: str = ""


FIGURES = {
    "efficiency": Figure(efficiency.draw, "held-out accuracy against training time and sampled tokens"),
    "ablation": Figure(efficiency.draw_ablation, "the same of SPPO, PPO and PPO+BCE"),
    "memory": Figure(memory.draw, "peak memory of each phase of an iteration"),
    "group_advantage": Figure(group_advantage.draw, "GRPO's advantage of a response against A = R − V", "nothing"),
    "calibration": Figure(calibration.draw, "V(prompt) against Avg@k", "evaluations", "value"),
    "tail": Figure(tail.draw, "where along a response a token-level critic knows its outcome", "evaluations", "values"),
}
