"""Made-up evaluations on disk, in the form in which runs leave them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """A file of an evaluation with these responses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def line(problem: str, sample: int, right: bool, **known: Any) -> dict[str, Any]:
    """One response."""
    return {"problem": problem, "sample": sample, "reward": float(right), "level": None, "value": 0.5, **known}


def evaluation(path: Path, problems: int = 120, k: int = 16, noise: float = 0.12, seed: int = 1) -> Path:
    """Problems of four levels whose critic knows their difficulty but for `noise`; the tails of responses tell more."""
    rng = random.Random(seed)
    lines = []
    for i in range(problems):
        level = i % 4
        rate = min(max(rng.gauss(0.8 - 0.2 * level, 0.2), 0.02), 0.98)
        value = min(max(rate + rng.gauss(0, noise), 0.01), 0.99)
        lines.append(line(f"p{i}", -1, rate > 0.5, level=level, value=value, values=[value] * 5))
        for sample in range(k):
            right, length = rng.random() < rate, rng.randint(30, 120)
            ahead = [max(0.0, t / (length - 1) - 0.7) / 0.3 for t in range(length)]
            values = [round(value + (0.4 if right else -0.4) * a + rng.gauss(0, 0.05), 5) for a in ahead]
            lines.append(line(f"p{i}", sample, right, level=level, value=value, values=values))
    return write(path, lines)
