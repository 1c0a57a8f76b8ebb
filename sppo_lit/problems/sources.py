"""Problem sets by name, by Hub id, from local files or from the user's functions, as streams of `Problem`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.problems.custom import open_function
from sppo_lit.problems.files import SUFFIXES, data_files, read_rows, split_of
from sppo_lit.problems.formats import (
    BadRow,
    Converter,
    NumberedRow,
    RawProblem,
    Row,
    chat_row,
    column_of,
    converter_for,
    gsm8k_row,
    mapped_row,
    named,
    plain_row,
    svamp_row,
)
from sppo_lit.problems.procedural import procedural
from sppo_lit.problems.prompts import BOXED_SUFFIX, Columns, PromptSettings
from sppo_lit.types import Problem
from sppo_lit.utils.hub import no_retries_offline, why_not
from sppo_lit.utils.objects import FORMS, names_object
from sppo_lit.utils.paths import find


@dataclass(frozen=True)
class SourceSpec:
    """Location of a problem set on the Hugging Face Hub, and how its rows are read.

    Attributes:
        hub_id: ``owner/name`` on the Hub.
        split: the default split.
        convert: converter of its rows.
        config: the Hub's configuration, if there are several.
    """

    hub_id: str
    split: str
    convert: Converter
    config: str | None = None


SOURCES: dict[str, SourceSpec] = {
    "gsm8k": SourceSpec("openai/gsm8k", "train", gsm8k_row, config="main"),
    "svamp": SourceSpec("ChilleD/SVAMP", "train", svamp_row),
    "dapo_math_17k": SourceSpec("BytedTsinghua-SIA/DAPO-Math-17k", "train", chat_row),
    "deepscaler": SourceSpec("agentica-org/DeepScaleR-Preview-Dataset", "train", plain_row),
    "math500": SourceSpec("HuggingFaceH4/MATH-500", "test", plain_row),
    "aime24": SourceSpec("HuggingFaceH4/aime_2024", "train", plain_row),
    "aime25": SourceSpec("math-ai/aime25", "test", plain_row),
    "amc23": SourceSpec("math-ai/amc23", "test", plain_row),
    "minerva": SourceSpec("math-ai/minervamath", "test", plain_row),
}


@dataclass
class ProblemSource:
    """Problems in the order of their source; every iteration starts from the first and resets the counts.

    Attributes:
        name: name of the data set, the first part of every `Problem.key`.
        split: its split, the second part.
        parts: of each file, Hub split or function: its place (for messages), its converter if known, and a function
            that opens its rows.
        prompt: how the text of a problem becomes its prompt.
        columns: the columns that the user has named.
        skip_bad_rows: count rows without problem or answer and corrupt lines instead of raising.
        limit: yield at most this many problems; None for all.
        dropped: rows dropped in the latest iteration so far, by reason: `duplicate`, `other_answer` (a duplicate whose
            gold answer differs from that of the first) and, with `skip_bad_rows`, `no_answer`, `no_problem`, `corrupt`.
        conflicting: the problems dropped as `other_answer`.
        kept: problems yielded in the latest iteration so far.
        suffixes: of each suffix, how many of the problems yielded got it.
    """

    name: str
    split: str
    parts: list[tuple[str, Converter | None, Callable[[], Iterable[NumberedRow]]]]
    prompt: PromptSettings = PromptSettings()  # noqa: RUF009 - frozen
    columns: Columns = Columns()  # noqa: RUF009
    skip_bad_rows: bool = False
    limit: int | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    conflicting: list[Problem] = field(default_factory=list)
    kept: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Problem]:
        """Yield every usable problem once.

        Raises:
            InputError: a bad row without `skip_bad_rows` (file and row named), equal keys, or no usable problem.
        """
        self.dropped, self.conflicting, self.suffixes, self.kept = Counter(), [], Counter(), 0
        answers: dict[str, str] = {}
        keys: set[str] = set()
        row = -1
        for row, (where, raw) in enumerate(self._raw()):
            if isinstance(raw, BadRow):
                if not self.skip_bad_rows:
                    raise InputError(f"{where}: {raw}; correct the row or set skip_bad_rows to drop such rows")
                self.dropped[raw.reason] += 1
                continue
            identity = {raw.prompt} if isinstance(raw, Problem) else set(raw.identity or (raw.text,))
            if seen := identity & answers.keys():
                same = any(answers[name] == raw.answer for name in seen)
                self.dropped["duplicate" if same else "other_answer"] += 1
                if not same:
                    self.conflicting.append(self._problem(raw, row))
                continue
            answers |= dict.fromkeys(identity, raw.answer)
            problem = self._problem(raw, row)
            if problem.key in keys:
                raise InputError(f"{where}: another problem has the key {problem.key!r} too; make keys unique or empty")
            keys.add(problem.key)
            self.kept += 1
            self.suffixes[self.prompt.suffix_after(_suffix_of(raw))] += 1
            yield problem
            if self.kept == self.limit:
                return
        if not self.kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            why = f"all {row + 1} rows were dropped ({reasons})" if row >= 0 else "it has no rows"
            raise InputError(f"Data set {self.name} ({', '.join(part[0] for part in self.parts)}) is empty: {why}")

    def problems(self) -> list[Problem]:
        """All problems, read through to the end (or to `limit`)."""
        return list(self)

    def _raw(self) -> Iterator[tuple[str, RawProblem | Problem | BadRow]]:
        """Every row, converted, with its place for messages."""
        for place, known, open_rows in self.parts:
            converter = None if named(self.columns) else known
            for number, row in open_rows():
                where = f"{place}, row {number}"
                if isinstance(row, (BadRow, Problem)):
                    yield where, row
                    continue
                if converter is None:
                    converter = self._converter(row, where)
                try:
                    yield where, converter(row)
                except BadRow as bad:
                    yield where, bad

    def _converter(self, row: Row, where: str) -> Converter:
        """The converter of a part whose first row is `row`."""
        names = named(self.columns)
        for name, column in names.items():
            if column_of(row, column) is None and column not in row:
                raise InputError(
                    f"{where}: no column {column!r} (columns.{name}); it has {', '.join(map(str, row)) or 'none'}"
                )
        converter = partial(mapped_row, self.columns) if names else converter_for(row)
        if converter is None:
            raise InputError(
                f"{where}: columns {', '.join(map(str, row))} are of no known schema; give each row a 'problem' and "
                "an 'answer', or name its columns, e.g. columns: {problem: …, answer: …}"
            )
        return converter

    def _problem(self, raw: RawProblem | Problem, row: int) -> Problem:
        start = f"{self.name}/{self.split}"
        if isinstance(raw, Problem):
            prompt = self.prompt.user_turn(raw.prompt, _suffix_of(raw))
            return replace(raw, key=raw.key or f"{start}/{row}", prompt=prompt, source=raw.source or self.name)
        return Problem(
            key=f"{start}/{raw.index or row}",
            prompt=self.prompt.user_turn(raw.text, _suffix_of(raw)),
            answer=raw.answer,
            source=self.name,
            level=raw.level,
            solution=raw.solution,
        )


def _suffix_of(raw: RawProblem | Problem) -> str:
    """The suffix where the user has not set one."""
    return "" if isinstance(raw, Problem) else BOXED_SUFFIX


def open_problems(
    path: str,
    split: str | None = None,
    *,
    streaming: bool = True,
    limit: int | None = None,
    prompt: PromptSettings = PromptSettings(),  # noqa: B008 - frozen
    columns: Columns = Columns(),  # noqa: B008
    skip_bad_rows: bool = False,
    name: str | None = None,
    config: str | None = None,
) -> ProblemSource:
    """Open a problem set; rows are read when the result is iterated.

    Args:
        path: a name in `SOURCES`, a Hub id (``owner/name``), a local file (.jsonl, .json, .parquet, .csv; also one that
            is shipped), a folder of such files (``./`` in front where it reads like one of the former), or a function
            of the user's own (``path/to/file.py:function`` or a dotted path). The schema of a file is recognised by the
            columns of its first row. A function is called without arguments, or with `split` if it has such a
            parameter, and returns or yields the same `Problem` records or rows (mappings with the columns of a file)
            whenever it is called, in every process. Records without a key get one.
        split: split to read; the source's own by default (``train`` where unknown). In a folder it picks the files
            named after it.
        streaming: read a Hub source row by row instead of downloading it first. All others are always read lazily.
        limit: yield at most this many problems.
        prompt: how the text of a problem becomes its prompt.
        columns: which column of a row holds what; by default they are recognised.
        skip_bad_rows: count rows without problem or answer and corrupt lines instead of raising.
        name: name of the data set in keys and results; by default the table's, or that of the file, folder or function.
        config: the Hub's configuration, instead of the table's.

    Raises:
        InputError: unknown name, missing file or function, unreachable Hub, bad limit, or a path whose problems are
            generated.
    """
    if procedural(path):
        raise InputError(f"{path}: its problems are generated, there is no data set to read; {_choices()}")
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}: a data set needs at least one problem; leave limit out for all")
    options: dict[str, Any] = {"prompt": prompt, "columns": columns, "skip_bad_rows": skip_bad_rows, "limit": limit}
    local = _local(path)
    known = next((n for n, spec in SOURCES.items() if path in (n, spec.hub_id)), None)
    like_file = local.exists() or local.suffix in SUFFIXES
    like_hub_id = _like_hub_id(path)
    if known is None and not like_file and not like_hub_id:
        if names_object(path):
            return _open_custom(path, split, name, options)
        if re.fullmatch(r"[\w.-]+", path):
            raise InputError(f"No problem set {path!r}: {_choices()}")
    if known is None and (local.exists() or not like_hub_id):
        files = data_files(local, split)
        name = name or _name_of(local.resolve())
        split = split or split_of(files[0]) or (SOURCES[name].split if name in SOURCES else "train")
        return ProblemSource(name, split, [(str(f), None, partial(read_rows, f)) for f in files], **options)
    spec = SOURCES[known] if known else SourceSpec(path, "train", plain_row)
    spec = replace(spec, config=config or spec.config)
    split = split or spec.split
    place = f"{spec.hub_id} ({split})"
    rows = partial(_number_rows, _open_hub(spec, split, streaming), place)
    return ProblemSource(name or known or path, split, [(place, spec.convert if known else None, rows)], **options)


def hub_id(path: str) -> str | None:
    """Id on the Hub of the problem set that a path names; None for local files, functions and procedural tasks."""
    for name, spec in SOURCES.items():
        if path in (name, spec.hub_id):
            return spec.hub_id
    if procedural(path):
        return None
    return path if _like_hub_id(path) and not _local(path).exists() else None


def _local(path: str) -> Path:
    """The file or folder that a path would name, here or among the shipped ones."""
    return Path(find(path)).expanduser()


def _like_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and Path(path).suffix not in SUFFIXES


def _open_custom(spec: str, split: str | None, name: str | None, options: dict[str, Any]) -> ProblemSource:
    try:
        read, split = open_function(spec, split)
    except InputError as error:
        if ":" in spec:
            raise
        raise InputError(f"{error}; {_choices()}") from error  # a misspelt file or name may read like a dotted path
    return ProblemSource(name or re.split("[.:]", spec)[-1], split, [(spec, None, read)], **options)


def _choices() -> str:
    return f"give a Hub id, a local file, one of {', '.join(SOURCES)}, or a function of your own as {FORMS}"


def _name_of(path: Path) -> str:
    """Name of a local data set: that in `SOURCES` where it matches, so that keys equal those of the Hub's rows."""
    name = path.name if path.is_dir() else path.parent.name if split_of(path) else path.stem
    table_name = re.sub(r"_x\d+$", "", name.lower().replace("-", "_"))  # aime24_x8: each problem eight times
    return table_name if table_name in SOURCES else name


def _open_hub(spec: SourceSpec, split: str, streaming: bool) -> Iterable[dict[str, Any]]:
    import datasets

    no_retries_offline()
    try:
        return datasets.load_dataset(spec.hub_id, spec.config, split=split, streaming=streaming)
    except Exception as error:  # no network, no such data set, no such split: each library has its own exceptions
        raise _hub_error(f"{spec.hub_id} ({split})", error) from error


def _number_rows(rows: Iterable[dict[str, Any]], place: str) -> Iterator[NumberedRow]:
    """Number the rows from 1; a lost connection is an InputError."""
    try:
        yield from enumerate(rows, start=1)
    except Exception as error:
        raise _hub_error(place, error) from error


def _hub_error(place: str, error: Exception) -> InputError:
    if why := why_not():
        return InputError(f"Hub data set {place}: {why}")
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(
        f"Hub data set {place} cannot be read ({first_line}): check name, split and connection, or give the path of "
        f"a local copy instead ({', '.join(SUFFIXES)})"
    )
