"""The figures of this project, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sppo_lit.analysis import calibration, efficiency, group_advantage, memory_by_phase, tail


class Figure(NamedTuple):
    """How a figure is drawn.

    Attributes:
        draw: (sources, PNG to write) -> its numbers; an SVG is written beside the PNG.
        about: one line.
        reads: what its sources are: training runs (or folders that hold them), evaluations (run folders or JSONL files
            with the critic's values), or nothing.
    """

    draw: Callable[[Sequence[Path], Path], dict[str, Any]]
    about: str
    reads: Literal["runs", "evaluations", "nothing"] = "runs"


FIGURES = {
    "efficiency": Figure(efficiency.draw, "held-out accuracy against training time and sampled tokens"),
    "ablation": Figure(efficiency.draw_ablation, "the same of SPPO, PPO and PPO+BCE"),
    "memory": Figure(memory_by_phase.draw, "peak memory of each phase of an iteration"),
    "group_advantage": Figure(group_advantage.draw, "GRPO's advantage of a response against A = R − V", "nothing"),
    "calibration": Figure(calibration.draw, "a critic's V(prompt) against Avg@k", "evaluations"),
    "tail": Figure(tail.draw, "V along correct and incorrect responses of a token-level critic", "evaluations"),
}
