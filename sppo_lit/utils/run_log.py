"""Reading the log of a run, ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path

Series = dict[str, tuple[list[float], list[float]]]
"""Metric → (iterations, values), equally long."""


def read_metrics(path: Path) -> Series:
    """Read every metric in a ``metrics.csv``.

    Args:
        path: file written by Lightning's `CSVLogger`, one row per logged step.

    Returns:
        Metric → (iterations, values), in order of iterations, without those in which it was not logged.

    Raises:
        OSError: the file cannot be read.
        TypeError: a line is incomplete.
        ValueError: a field is not a number, or a line is incomplete.
    """
    values: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # Where no step was logged, Lightning counts from 0 and adds the epoch.
            iteration = float(row["epoch"]) + 1 if row.get("epoch") else float(row["step"])
            for name, text in row.items():
                if name not in {"step", "epoch"} and text:
                    values.setdefault(name, {})[iteration] = float(text)
    return {name: tuple(map(list, zip(*sorted(points.items()), strict=True))) for name, points in values.items()}  # type: ignore[misc]
