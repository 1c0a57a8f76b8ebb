"""The numbers of a figure as tables of text, for a terminal or a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: may be empty.
        columns: headings, the first of the rows' names.
        rows: as wide as `columns`.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(numbers: Mapping[str, Any], title: str = "") -> list[TextTable]:
    """Tables of nested numbers: single ones by name, mappings of mappings with a row (or column) for each.

    What is no number, text, pair (mean, standard deviation) or mapping, such as a whole curve, is left out.

    Args:
        numbers: as a figure's `draw` returns them.
        title: of the first table.
    """
    found = []
    single = [[_words(name), text(value)] for name, value in numbers.items() if shown(value)]
    if single:
        found.append(TextTable(title, ["", ""], single))
    rows = {name: value for name, value in numbers.items() if isinstance(value, Mapping)}
    flat = {name: row for name, row in rows.items() if any(map(shown, row.values()))}
    if flat:
        found.append(_grid(title if not single else "", flat))
    for name, row in rows.items():
        nested = {key: value for key, value in row.items() if isinstance(value, Mapping)}
        found += tables(nested, f"{title} · {_words(name)}".removeprefix(" · ")) if nested else []
    return found


def _grid(title: str, rows: Mapping[str, Mapping[str, Any]]) -> TextTable:
    names = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if shown(value)))
    if len(names) > len(rows):  # the longer side goes down the page
        body = [[_words(name), *(text(row.get(name)) for row in rows.values())] for name in names]
        return TextTable(title, ["", *rows], body)
    body = [[key, *(text(row.get(name)) for name in names)] for key, row in rows.items()]
    return TextTable(title, ["", *map(_words, names)], body)


def shown(value: Any) -> bool:
    """Whether a value fits into one field of a table."""
    return value is None or isinstance(value, (int, float, str)) or _is_pair(value)


def text(value: Any) -> str:
    """A value for reading: four digits, – for none, mean ± standard deviation for a pair."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if _is_pair(value):
        return text(value[0]) + (f" ± {text(value[1])}" if value[1] is not None else "")
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}" if abs(value) < 0.001 else f"{value:.3f}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(v is None or isinstance(v, float) for v in value)


def _words(name: str) -> str:
    return name.replace("_", " ")
