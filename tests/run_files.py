"""Reading what a run leaves on disk."""

from __future__ import annotations

import csv
from pathlib import Path


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``, as text; "" where nothing was logged."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
