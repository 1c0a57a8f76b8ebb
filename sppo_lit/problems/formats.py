"""Conversion of a data set's row, in any of the common schemas, to the problem and its gold answer as clean text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sppo_lit.problems.prompts import BOXED_SUFFIX, Columns
from sppo_lit.types import Problem

# The instructions around each problem of the Hub's DAPO-Math-17k.
_WRAPPER_START = re.compile(
    r"\A\s*Solve the following math problem step by step\. The last line of your response should be of the form "
    r"Answer: \\?\$Answer[^\n]*?is the answer to the problem\.\s*",
    re.IGNORECASE,
)
_WRAPPER_END = re.compile(r"\s*Remember to put your answer on its own line after \"Answer:\"[^\n]*\s*\Z")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_WHOLE_DECIMAL = re.compile(r"[+-]?\d+\.0+")
_BOX = re.compile(r"\\f?boxed\s*\{")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row without a usable problem.

    Args:
        reason: under which it is counted.
        message: what is missing.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class RawProblem:
    r"""The cleaned contents of a row.

    Attributes:
        text: the problem alone, without wrappers and without an answer-format suffix.
        answer: gold answer, without ``\boxed{}``.
        index: identifier of the problem, if the row has one that is unique by nature (a UUID).
        level: graded difficulty.
        solution: worked response that ends in ``\boxed{answer}``.
        identity: rows that share any of these are the same problem; `text` alone if empty.
    """

    text: str
    answer: str
    index: str | None = None
    level: int | None = None
    solution: str | None = None
    identity: tuple[str, ...] = ()


Converter = Callable[[Row], RawProblem]
NumberedRow = tuple[int, "Row | Problem | BadRow"]
"""A row with its number in the file or data set, from 1; a `Problem` needs no conversion."""


def boxed_contents(text: str) -> list[str]:
    r"""Contents of every ``\boxed{...}`` with balanced braces, in order; an inner box follows the one around it."""
    contents = []
    for match in _BOX.finditer(text):
        depth = 1
        for end in range(match.end(), len(text)):
            if text[end] in "{}" and text[end - 1] != "\\":
                depth += 1 if text[end] == "{" else -1
            if depth == 0:
                contents.append(text[match.end() : end].strip())
                break
    return contents


def clean_prompt(text: str) -> str:
    """Remove DAPO's two wrappers and a trailing `BOXED_SUFFIX` from a prompt."""
    text = _WRAPPER_END.sub("", _WRAPPER_START.sub("", text)).strip()
    while text.endswith(BOXED_SUFFIX):
        text = text.removesuffix(BOXED_SUFFIX).rstrip()
    return text


def clean_answer(value: Any) -> str:
    """A gold answer as text: whole numbers without decimals (``27.0`` is ``27``), contents of the last box.

    Raises:
        BadRow: `no_answer` if the value is missing, blank, NaN or not a single answer.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and math.isfinite(value):
        value = str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow("no_answer", "no answer" if value is None else f"answer {value!r} is neither text nor a number")
    text = value.strip()
    boxes = boxed_contents(text)
    text = boxes[-1] if boxes else text
    if not text:
        raise BadRow("no_answer", "no answer")
    return text.split(".")[0] if _WHOLE_DECIMAL.fullmatch(text) else text


def gsm8k_row(row: Row) -> RawProblem:
    """GSM8K: `question`, and `answer` = worked solution, ``####``, gold answer with thousands commas."""
    text, worked = _problem_text(row, ("question",)), row.get("answer")
    if not isinstance(worked, str) or "####" not in worked:
        raise BadRow("no_answer", "no answer after '####'")
    steps, _, gold = worked.rpartition("####")
    answer = clean_answer(gold.replace(",", ""))
    lines = [_CALCULATION.sub("", steps).strip(), f"\\boxed{{{answer}}}"]
    return RawProblem(text, answer, solution="\n".join(line for line in lines if line))


def svamp_row(row: Row) -> RawProblem:
    """SVAMP: `Body`, which may lack its full stop, `Question` and `Answer`; or `question` and `answer`."""
    if "Body" not in row:
        return plain_row(row)
    body, question = (str(row.get(name) or "").strip() for name in ("Body", "Question"))
    body += "." if body[-1:].isalnum() else ""
    return plain_row({"problem": f"{body} {question}".strip(), "answer": row.get("Answer")})


def chat_row(row: Row) -> RawProblem:
    """Chat schema: `prompt` = list of messages, `reward_model.ground_truth`, `extra_info.index`.

    The last user message is the problem. A gold answer that was cut off at its first closing brace is completed from
    the boxed answer of `extra_info.solution` that begins with it.
    """
    turn = _last_user_turn(row.get("prompt"))
    text = _problem_text({"prompt": turn}, ("prompt",))
    reward, extra = _mapping(row.get("reward_model")), _mapping(row.get("extra_info"))
    answer = clean_answer(reward.get("ground_truth"))
    if answer.count("{") > answer.count("}"):
        whole = [box for box in boxed_contents(str(extra.get("solution") or "")) if box.startswith(answer)]
        answer = whole[-1] if whole else answer
    index = str(extra.get("index"))
    if not _UUID.fullmatch(index):
        return RawProblem(text, answer, level=_level(row))
    # DAPO's 17,398 problems are distinguished by index and exact prompt.
    return RawProblem(text, answer, index=index, level=_level(row), identity=(index, str(turn)))


def plain_row(row: Row) -> RawProblem:
    """`problem`, `question` or `prompt` with `answer`, `gold` or `solution` (its last box); `difficulty` or `level`."""
    text = _problem_text(row, ("problem", "question", "prompt"))
    gold = next((row[name] for name in ("answer", "gold", "solution") if row.get(name) not in (None, "")), None)
    return RawProblem(text, clean_answer(gold), level=_level(row))


def mapped_row(columns: Columns, row: Row) -> RawProblem:
    """A row whose columns the user has named; what is not named stands under its usual name."""
    renamed = {**row, **{name: column_of(row, column) for name, column in named(columns).items()}}
    if isinstance(renamed.get("problem"), list):
        renamed["problem"] = _last_user_turn(renamed["problem"])
    if columns.level:
        renamed["difficulty"] = renamed["level"]
    answer = renamed.get("answer")
    if isinstance(answer, str) and "####" in answer:
        text = _problem_text(renamed, ("problem", "question", "prompt"))
        raw = gsm8k_row({"question": text, "answer": answer})
        raw = replace(raw, level=_level(renamed))
    else:
        raw = plain_row(renamed)
    if not columns.solution:
        return raw
    solution = renamed["solution"]
    if not isinstance(solution, str) or not solution.strip():
        raise BadRow("no_solution", f"no text in the column {columns.solution} (columns.solution)")
    solution = solution.strip()
    if raw.answer not in boxed_contents(solution):
        solution += f"\n\\boxed{{{raw.answer}}}"
    return replace(raw, solution=solution)


def named(columns: Columns) -> dict[str, str]:
    """What the user has named a column for, and the column."""
    return {name: column for name, column in asdict(columns).items() if column}


def column_of(row: Row, column: str) -> Any:
    """The value of a column, or of a field in it (``meta.gold``); None if there is none."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        value = _mapping(value).get(part)
    return value


def converter_for(row: Row) -> Converter | None:
    """The converter for the columns of `row`, the first of a file; None if they are of no known schema."""
    if isinstance(row.get("prompt"), list) and "reward_model" in row:
        return chat_row
    if "question" in row and isinstance(row.get("answer"), str) and "####" in row["answer"]:
        return gsm8k_row
    if {"Body", "Question", "Answer"} <= set(row):
        return svamp_row
    if {"problem", "question", "prompt"} & set(row) and {"answer", "gold", "solution"} & set(row):
        return plain_row
    return None


def _problem_text(row: Row, names: tuple[str, ...]) -> str:
    value = next((row[name] for name in names if row.get(name)), None)
    text = clean_prompt(value) if isinstance(value, str) else ""
    if not text:
        raise BadRow("no_problem", f"no problem text in {' or '.join(names)}")
    return text


def _last_user_turn(messages: Any) -> Any:
    turns = [m.get("content") for m in messages or () if isinstance(m, Mapping) and m.get("role") == "user"]
    return turns[-1] if turns else None


def _mapping(value: Any) -> Row:
    """A nested field; some files hold it as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _level(row: Row) -> int | None:
    """`difficulty` (DeepScaleR) or `level` (MATH: a number or ``Level 5``), rounded half up; None if not a number."""
    for name in ("difficulty", "level"):
        value = row.get(name)
        if isinstance(value, bool) or value is None:
            continue
        try:
            number = float(str(value).lower().removeprefix("level"))
        except ValueError:
            continue
        if math.isfinite(number):
            return math.floor(number + 0.5)
    return None
