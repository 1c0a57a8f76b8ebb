"""The numbers of a figure as tables of text, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sppo_lit.utils.console import duration


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: heading; may be empty.
        columns: headings of the columns; the first column has the names of the rows.
        rows: cells, as many in each row as there are columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(numbers: Mapping[str, Any], title: str = "", units: Mapping[str, str] | None = None) -> list[TextTable]:
    """Make tables of nested numbers.

    Single values make one table of names and values, mappings of values another with a row (or column) for each.
    Values that do not fit into a cell, such as whole curves, are left out.

    Args:
        numbers: numbers as a figure's `draw` returns them.
        title: title of the first table.
        units: name of a number → its unit (see `format_value`). The last word of a name may stand for it, as in "sppo
            speedup"; or the first word of its row's name, as in "seconds to 60%".
    """
    result, units = [], units or {}
    single = [
        [_words(name), format_value(value, units.get(name, ""))] for name, value in numbers.items() if fits_cell(value)
    ]
    if single:
        result.append(TextTable(title, ["", ""], single))
    rows = {name: value for name, value in numbers.items() if isinstance(value, Mapping)}
    flat = {name: row for name, row in rows.items() if any(map(fits_cell, row.values()))}
    if flat:
        result.append(_grid(title if not single else "", flat, units))
    for name, row in rows.items():
        nested = {key: value for key, value in row.items() if isinstance(value, Mapping)}
        result += tables(nested, f"{title} · {_words(name)}".removeprefix(" · "), units) if nested else []
    return result


def _grid(title: str, rows: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]) -> TextTable:
    names = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if fits_cell(value)))
    if len(names) > len(rows):  # the longer side goes down the page
        body = [
            [_words(name), *(format_value(row.get(name), _unit(units, name, key)) for key, row in rows.items())]
            for name in names
        ]
        return TextTable(title, ["", *rows], body)
    body = [
        [key, *(format_value(row.get(name), _unit(units, name, key)) for name in names)] for key, row in rows.items()
    ]
    return TextTable(title, ["", *map(_words, names)], body)


def _unit(units: Mapping[str, str], name: str, row: str) -> str:
    """Unit of the number `name` in a row; see `tables`."""
    first, space, _ = row.partition(" ")
    known = (units.get(key) for key in (name, name.rpartition(" ")[2], first if space else ""))
    return next((unit for unit in known if unit is not None), "")


def fits_cell(value: Any) -> bool:
    """Whether a value fits into a cell: number, text, None, (mean, standard deviation), or (estimate, low, high)."""
    return value is None or isinstance(value, (int, float, str)) or _is_tuple(value, 2) or _is_tuple(value, 3)


def format_value(value: Any, unit: str = "") -> str:
    """Format a value for reading: about four digits, – for None and NaN, mean ± deviation, estimate and interval.

    Args:
        value: see `fits_cell`.
        unit: "%" for a fraction, "s" for seconds; any other is written after the number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞"
    if _is_tuple(value, 3):
        estimate, low, high = (format_value(v, unit) for v in value)
        return estimate + ("" if math.isnan(value[1]) else f" [{low}, {high}]")
    if _is_tuple(value, 2):
        mean, deviation = value
        text = format_value(mean, unit)
        if deviation is None:
            return text
        if unit == "%":
            return f"{text.removesuffix('%')} ± {format_value(deviation, unit)}"
        return f"{text} ± {format_value(deviation, unit)}"
    if isinstance(value, (bool, str)):
        return str(value)
    if unit == "%":
        return f"{round(value, 3) + 0.0:.1%}"  # not -0.0%
    if unit == "s":
        return duration(value)
    if unit:
        return f"{value:,.0f} {unit}" if unit[0].isalpha() else f"{value:.2f}{unit}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}" if abs(value) < 0.001 else f"{value:.3f}"


def _is_tuple(value: Any, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(v is None or isinstance(v, float) for v in value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def finite(value: Any) -> Any:
    """Copy of nested numbers with None for NaN and infinity, which JSON does not have, and keys as text."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
