"""The log of a run, ``metrics.csv``, as series."""

from __future__ import annotations

import csv
from pathlib import Path

Series = dict[str, tuple[list[float], list[float]]]
"""Metric → (iterations, values), equally long."""


def read_metrics(path: Path) -> Series:
    """Iterations and values of every metric in a ``metrics.csv``, without gaps, in order.

    Args:
        path: written by Lightning's `CSVLogger`, one row per logged step.

    Returns:
        name → (iterations, values), equally long.
    """
    found: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # Where no step was logged, Lightning counts from 0 and adds the epoch.
            iteration = float(row["epoch"]) + 1 if row.get("epoch") else float(row["step"])
            for name, text in row.items():
                if name not in {"step", "epoch"} and text:
                    found.setdefault(name, {})[iteration] = float(text)
    return {name: tuple(map(list, zip(*sorted(points.items()), strict=True))) for name, points in found.items()}  # type: ignore[misc]
