"""Rows of local files, in order and lazily, each with its 1-based number in the file."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.problems.formats import BadRow

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=$|[-_.])")


def split_of(path: Path) -> str | None:
    """The split in a file's name, if any: ``train`` for ``train.jsonl`` and ``train-00000-of-00001.parquet``."""
    match = _SPLIT.match(path.name)
    return match.group(1) if match else None


def data_files(path: Path, split: str | None) -> list[Path]:
    """The data files at `path`: the file itself, or those of a folder in the order of their names.

    Args:
        path: a file or folder.
        split: if files of the folder are named after splits, only those of this one are taken; None takes ``train``,
            or the only split there is.

    Raises:
        InputError: a missing path, an unknown file format, a file named after another split, a folder without data or
            without that split.
    """
    if not path.exists():
        raise InputError(f"No data file {path}: check the path")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise InputError(f"Data file {path} is none of {', '.join(SUFFIXES)}: convert it to one of them")
        if split and split_of(path) not in (split, None):
            raise InputError(
                f"Data file {path} is of split {split_of(path)!r} by its name, and split {split!r} is asked for: give "
                "the other split's file, or leave split out"
            )
        return [path]
    files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in SUFFIXES)
    if not files:
        raise InputError(f"Folder {path} holds no data file ({', '.join(SUFFIXES)})")
    splits = sorted({s for f in files if (s := split_of(f))})
    if not splits:
        return files
    wanted = split or (splits[0] if len(splits) == 1 else "train")
    files = [f for f in files if split_of(f) == wanted]
    if not files:
        raise InputError(f"Folder {path} holds no file of split {wanted!r}: it has {', '.join(splits)}")
    return files


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Yield (row number, row); a corrupt row that leaves the next ones readable is yielded as a `BadRow`.

    JSON is read as text and decoded row by row, so that an error names its row and leaves the others readable.

    Raises:
        InputError: an unreadable file, or a JSON array that is corrupt from the named row on.
    """
    if path.suffix in (".jsonl", ".json"):
        with path.open("rb") as file:
            array = path.suffix == ".json" and file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        yield from _json_array(path) if array else _json_lines(path)
    else:
        options: dict[str, Any] = {}
        if path.suffix == ".csv":  # every column as text: a gold answer such as 007 or 1e5 is kept as written
            from datasets import Features, Value

            options = {
                "features": Features({name: Value("string") for name in _header(path)}),
                "keep_default_na": False,
            }
        yield from enumerate(_stream(path.suffix[1:], path, **options), start=1)


def _stream(builder: str, path: Path, **options: Any) -> Iterator[dict[str, Any]]:
    import datasets

    if builder == "parquet" and _has_no_rows(path):
        return  # its reader would call the file corrupt
    try:
        yield from datasets.load_dataset(
            builder, data_files=glob.escape(str(path)), split="train", streaming=True, **options
        )
    except Exception as error:  # each format's reader raises its own exceptions
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"Data file {path} cannot be read as {path.suffix[1:]}: {first_line}") from error


def _has_no_rows(path: Path) -> bool:
    from pyarrow import ArrowException, parquet

    try:
        return int(parquet.read_metadata(path).num_rows) == 0
    except (ArrowException, OSError):
        return False  # whoever reads on will say what is wrong


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for number, line in enumerate(_stream("text", path, encoding="utf-8-sig"), start=1):
        if line["text"].strip():
            try:
                yield number, _as_row(json.loads(line["text"]))
            except ValueError as error:
                yield number, BadRow("corrupt", f"corrupt JSON ({error})")


def _json_array(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    for document in _stream("text", path, encoding="utf-8-sig", sample_by="document"):
        text, number = document["text"], 0
        position = gap.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]  # the pattern may be empty
        while text[position : position + 1] != "]":
            number += 1
            try:
                value, position = decoder.raw_decode(text, position)
            except ValueError as error:
                raise InputError(f"{path}, row {number}: corrupt JSON ({error}): correct the file") from error
            yield number, _as_row(value)
            position = gap.match(text, position).end()  # type: ignore[union-attr]


def _as_row(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow("corrupt", "not an object with named fields")


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise InputError(f"Data file {path} is not UTF-8 text: {error}") from error
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)]  # as pandas calls a column without a name
