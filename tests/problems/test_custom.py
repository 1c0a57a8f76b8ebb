"""Problem sets of the user's own: functions that return problems or rows."""

import json
import re
import sys
from pathlib import Path

import pytest

from sppo_lit.errors import InputError
from sppo_lit.problems.prompts import BOXED_SUFFIX, PromptSettings
from sppo_lit.problems.sources import open_problems
from sppo_lit.types import Problem

MODULE = """
from sppo_lit.types import Problem

calls = []

def sums(split="train"):
    calls.append(split)
    start = 0 if split == "train" else 100
    for i in range(start, start + 4):
        yield {"problem": f"{i}+1", "answer": i + 1, "level": 2}

def records():
    return [
        Problem(key="", prompt="One? ", answer="1"),
        Problem(key="", prompt="One? ", answer="1"),
        Problem(key="mine/7", prompt="Two?", answer="2", source="book", level=3),
        Problem(key="", prompt="Three?", answer="3", solution="\\\\boxed{3}"),
        {"question": "Four?", "answer": "So.\\n#### 4"},
    ]

def needs(split):
    return [{"problem": split, "answer": "1"}]

def odd():
    return [{"problem": "a", "answer": "1"}, 5, Problem("", " ", "1"), Problem("", "b", ""), {"problem": "c"},
            {"problem": "d", "answer": "4"}]

def equal_keys():
    return [Problem("k", "a", "1"), Problem("k", "b", "2")]

def breaks():
    yield {"problem": "a", "answer": "1"}
    raise KeyError("no\\nsuch column")

def number():
    return 5

def empty():
    return []

def unknown():
    return [{"text": "hello"}]

def asks(what):
    return []

word = "text"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_problems.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_problems", raising=False)
    return f"{tmp_path}/own_problems.py"


def test_rows_are_read_as_those_of_a_file(module: str) -> None:
    source = open_problems(f"{module}:sums")
    for _ in range(2):  # the function is called anew
        assert [p.key for p in source] == [f"sums/train/{i}" for i in range(4)]
    first = source.problems()[0]
    assert (first.prompt, first.answer, first.source, first.level) == (f"0+1 {BOXED_SUFFIX}", "1", "sums", 2)
    assert len(open_problems(f"{module}:sums", limit=3, prompt=PromptSettings(suffix="")).problems()) == 3


def test_records_stay_as_they_are_but_for_missing_keys(module: str) -> None:
    source = open_problems(f"{module}:records", name="mine")
    assert source.problems() == [
        Problem("mine/train/0", "One? ", "1", "mine"),
        Problem("mine/7", "Two?", "2", "book", level=3),
        Problem("mine/train/3", "Three?", "3", "mine", solution="\\boxed{3}"),
        Problem("mine/train/4", f"Four? {BOXED_SUFFIX}", "4", "mine", solution="So.\n\\boxed{4}"),
    ]
    assert source.dropped == {"duplicate": 1}


@pytest.mark.parametrize("form", ["own_problems.sums", "own_problems:sums", "own_problems.py:sums"])
def test_split_is_handed_over(module: str, form: str) -> None:
    test = open_problems(form, "test").problems()
    assert test[0].key == "sums/test/0" and test[0].prompt.startswith("100+1")
    assert next(iter(open_problems(form))).prompt.startswith("0+1")
    assert next(iter(open_problems(f"{module}:needs"))).prompt.startswith("train")


def test_bad_rows_are_counted_on_request(module: str) -> None:
    source = open_problems(f"{module}:odd", skip_bad_rows=True)
    assert [(p.key, p.answer) for p in source] == [("odd/train/0", "1"), ("odd/train/5", "4")]
    assert source.dropped == {"corrupt": 1, "no_problem": 1, "no_answer": 2}
    with pytest.raises(InputError, match=r"py:odd, row 2: of type int, neither a Problem nor a mapping.*skip_bad_rows"):
        open_problems(f"{module}:odd").problems()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("breaks", "the function failed: KeyError: .*no.*such column"),
        ("number", "the function failed: TypeError: returned int, not problems or rows"),
        ("asks", "the function failed: TypeError: .*missing 1 required positional argument: 'what'"),
        ("equal_keys", "row 2: another problem has the key 'k' too"),
        ("empty", "is empty: it has no rows"),
        ("unknown", "row 1: columns text are of no known schema"),
        ("word", "of type str, not a function"),
        ("absent", "has no function absent"),
    ],
)
def test_errors_name_the_function_in_one_line(module: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(module)}:?.*{message}") as error:
        open_problems(f"{module}:{name}").problems()
    assert "\n" not in str(error.value)


def test_a_split_that_the_function_does_not_take_is_refused(module: str) -> None:
    with pytest.raises(InputError, match="split 'test' is asked for, but the function has no parameter 'split'"):
        open_problems(f"{module}:records", "test")


def test_files_folders_and_hub_ids_come_first(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_problems.sums").mkdir()
    (tmp_path / "own_problems.sums" / "a.jsonl").write_text(json.dumps({"problem": "of the folder", "answer": 1}))
    assert next(iter(open_problems("own_problems.sums"))).prompt.startswith("of the folder")
    with pytest.raises(InputError, match=r"No data file own_problems\.jsonl"):
        open_problems("own_problems.jsonl")
    seen = []
    monkeypatch.setattr("datasets.load_dataset", lambda path, *args, **kwargs: seen.append(path) or [])
    open_problems("own_problems/sums.v2")
    assert seen == ["own_problems/sums.v2"]


@pytest.mark.parametrize("path", ["my.data", "notes.txt"])
def test_what_reads_like_a_dotted_path_may_be_misspelt(module: str, path: str) -> None:
    place = path.partition(".")[0]
    with pytest.raises(
        InputError, match=rf"'{path}': importing {place} failed: .*give a Hub id, a local file"
    ) as error:
        open_problems(path)
    assert "\n" not in str(error.value)
