"""Problem sets: real files, the Hub's schemas, bad input."""

import json
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from sppo_lit.errors import InputError
from sppo_lit.problems.formats import clean_answer
from sppo_lit.problems.prompts import BOXED_SUFFIX, PromptSettings
from sppo_lit.problems.sources import SOURCES, open_problems
from sppo_lit.utils import hub as connection

WRAPPED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
UUID = "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f7407{}"


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def dapo_row(index: int, text: str, gold: str) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": WRAPPED.format(text), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": gold, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": UUID.format(index)},
    }


@pytest.fixture
def hub(monkeypatch):
    """Serve rows in place of the Hub; gives a function (rows) -> list that records the calls."""
    real = datasets.load_dataset

    def serve(rows: list[dict]) -> list:
        calls: list = []

        def load_dataset(path, name=None, **options):
            if path in ("text", "parquet", "csv"):
                return real(path, name, **options)
            calls.append((path, name, options["split"], options["streaming"]))
            table = datasets.Dataset.from_list(rows)
            return table.to_iterable_dataset() if options["streaming"] else table

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return serve


@pytest.mark.parametrize(
    ("file", "kept", "dropped"),
    [
        ("gsm8k/train.jsonl", 7473, {}),
        ("gsm8k/test.jsonl", 1319, {}),
        ("svamp/train.jsonl", 700, {}),
        ("svamp/test.jsonl", 300, {}),
        ("dapo-math-17k/train.parquet", 17398, {}),
        ("deepscaler/math.json", 7470, {"no_answer": 4}),
        ("deepscaler/aime.json", 975, {}),
        ("benchmarks/math500.parquet", 500, {}),
        ("benchmarks/aime24_x8.parquet", 30, {"duplicate": 210}),
        ("benchmarks/aime25.parquet", 30, {}),
        ("benchmarks/amc23.parquet", 40, {}),
        ("benchmarks/minerva.parquet", 272, {}),
    ],
)
def test_real_file_gives_every_problem_once(datasets_dir, file, kept, dropped):
    source = open_problems(str(datasets_dir / file), skip_bad_rows=True)
    problems = source.problems()
    assert (len(problems), source.kept, source.dropped) == (kept, kept, Counter(dropped))
    assert len({p.key for p in problems}) == kept
    for p in problems:
        assert p.answer.strip() and "\\boxed" not in p.answer and p.answer.count("{") == p.answer.count("}"), p
        assert p.prompt.endswith(" " + BOXED_SUFFIX) and p.prompt.count(BOXED_SUFFIX) == 1, p
        assert p.source and p.key.startswith(p.source + "/")
    if "dapo" not in file:  # 143 problems of DAPO stand there twice, but for a line break; both are the paper's
        assert len({p.prompt for p in problems}) == kept


def test_gsm8k_gold_and_worked_solution(datasets_dir):
    problems = open_problems(str(datasets_dir / "gsm8k" / "train.jsonl")).problems()
    assert problems[17].key == "gsm8k/train/17" and problems[17].source == "gsm8k"
    assert problems[0].solution == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n\\boxed{72}"
    )
    assert all(p.answer.lstrip("-").isdigit() for p in problems)
    assert sum(len(p.answer.lstrip("-")) > 3 for p in problems) > 79  # those with thousands commas among them
    for p in problems:
        assert p.solution.endswith(f"\n\\boxed{{{p.answer}}}")
        assert "<<" not in p.solution and "####" not in p.solution


def test_amc_decimals_and_minerva_answers_cut_at_a_brace(datasets_dir):
    amc = open_problems(str(datasets_dir / "benchmarks" / "amc23.parquet")).problems()
    assert [p.answer for p in amc[:4]] == ["27", "36", "45", "3159"]
    minerva = {p.answer for p in open_problems(str(datasets_dir / "benchmarks" / "minerva.parquet"))}
    assert "\\left[P_{0}^{2 / 5}-\\frac{2}{5} g K^{-3 / 5} z\\right]^{5 / 2}" in minerva  # the file has \left[P_{0
    assert {"1.6", "4.5e33"} <= minerva


def test_local_copy_has_the_keys_of_the_table(datasets_dir):
    for file, key in (
        ("benchmarks/math500.parquet", "math500/test/0"),
        ("dapo-math-17k/train.parquet", "dapo_math_17k/"),
    ):
        assert next(iter(open_problems(str(datasets_dir / file)))).key.startswith(key)
    named = open_problems(str(datasets_dir / "benchmarks" / "aime24_x8.parquet")).problems()
    assert {p.source for p in named} == {"aime24"} and named[1].key == "aime24/train/8"


def test_deepscaler_levels_and_its_row_without_answer(datasets_dir):
    path = str(datasets_dir / "deepscaler" / "math.json")
    levels = Counter(p.level for p in open_problems(path, skip_bad_rows=True))
    assert levels == {5: 2296, 4: 1681, 3: 1582, 2: 1345, 1: 564, 0: 2}
    with pytest.raises(InputError, match=r"math\.json, row 887: no answer; .*skip_bad_rows"):
        open_problems(path).problems()
    aime = open_problems(str(datasets_dir / "deepscaler" / "aime.json"), limit=30).problems()
    assert all(isinstance(p.level, int) for p in aime)


def test_folder_takes_the_files_of_its_split(datasets_dir):
    folder = str(datasets_dir / "gsm8k")
    assert len(open_problems(folder).problems()) == 7473
    test = open_problems(folder, "test")
    assert next(iter(test)).key == "gsm8k/test/0" and len(test.problems()) == 1319
    with pytest.raises(InputError, match="no file of split 'dev': it has test, train"):
        open_problems(folder, "dev")
    with pytest.raises(InputError, match="of split 'train' by its name, and split 'test' is asked for"):
        open_problems(f"{folder}/train.jsonl", "test")
    both = open_problems(str(datasets_dir / "deepscaler"), skip_bad_rows=True)
    problems = both.problems()  # files without a split in their names belong together; AIME problems stand in both
    assert len(problems) == 7470 + 975 - both.dropped["duplicate"] - both.dropped["other_answer"]
    assert [(p.key, p.answer) for p in both.conflicting] == [("deepscaler/train/3117", "097")]  # of 97
    assert len({p.prompt for p in problems}) == len({p.key for p in problems}) == len(problems)


def test_dapo_of_the_hub_loses_repeats_and_both_wrappers(hub):
    rows = [dapo_row(1, "What is $1+1$?", "2"), dapo_row(2, "求 $x$ 的值.", "3")] * 100
    rows += [dapo_row(3, "What is $1+1$?", "2"), dapo_row(4, f"Find $y$. {BOXED_SUFFIX}", "\\boxed{4}")]
    calls = hub(rows)
    source = open_problems("dapo_math_17k")
    problems = source.problems()
    assert calls == [("BytedTsinghua-SIA/DAPO-Math-17k", None, "train", True)]
    assert [p.prompt.removesuffix(" " + BOXED_SUFFIX) for p in problems] == [
        "What is $1+1$?",
        "求 $x$ 的值.",
        "Find $y$.",
    ]
    assert [p.answer for p in problems] == ["2", "3", "4"]
    assert problems[0].key == f"dapo_math_17k/train/{UUID.format(1)}"
    assert source.dropped == {"duplicate": 199}


HUB_ROWS = {
    "gsm8k": ({"question": "Q?", "answer": "So <<2*3=6>>6.\n#### 6,000"}, "6000"),
    "svamp": ({"ID": "chal-1", "Body": "", "Question": "Q?", "Equation": "( 8.0 - 3.0 )", "Answer": "5.0"}, "5"),
    "deepscaler": ({"problem": "Q?", "answer": "\\frac{1}{2}", "solution": "Long."}, "\\frac{1}{2}"),
    "math500": ({"problem": "Q?", "solution": "s", "answer": "p - q", "subject": "Algebra", "level": 4}, "p - q"),
    "aime24": ({"id": 60, "problem": "Q?", "solution": "s", "answer": "204", "url": "u", "year": "2024"}, "204"),
    "aime25": ({"problem": "Q?", "answer": "70", "id": "0"}, "70"),
    "amc23": ({"id": 0, "answer": "27.0", "url": "u", "question": "Q?"}, "27"),
    "minerva": ({"question": "Q?", "answer": "4.5e33"}, "4.5e33"),
}


@pytest.mark.parametrize("name", HUB_ROWS)
@pytest.mark.parametrize("streaming", [True, False])
def test_hub_source_by_name_and_by_id(hub, name, streaming):
    row, gold = HUB_ROWS[name]
    calls = hub([row])
    spec = SOURCES[name]
    for path in (name, spec.hub_id):
        (problem,) = open_problems(path, streaming=streaming)
        assert problem.answer == gold and problem.prompt == f"Q? {BOXED_SUFFIX}"
        assert problem.key == f"{name}/{spec.split}/0"
        assert problem.level == (4 if name == "math500" else None)
    assert calls == [(spec.hub_id, spec.config, spec.split, streaming)] * 2


def test_hub_and_local_copy_of_gsm8k_give_the_same_problems(datasets_dir, hub):
    path = datasets_dir / "gsm8k" / "test.jsonl"
    calls = hub([json.loads(line) for line in path.read_text().splitlines()])
    assert open_problems("openai/gsm8k", "test").problems() == open_problems(str(path)).problems()
    assert calls == [("openai/gsm8k", "main", "test", True)]


def test_svamp_is_the_same_problem_from_the_hub_and_from_a_file(datasets_dir, hub):
    path = datasets_dir / "svamp" / "train.jsonl"
    body, _, question = json.loads(path.read_text().splitlines()[0])["question"].rpartition(". ")
    hub([{"Body": body, "Question": question, "Answer": "51.0", "Type": "Subtraction"}])
    [problem], local = open_problems("svamp").problems(), open_problems(str(path)).problems()[0]
    assert (problem.prompt, problem.answer) == (local.prompt, local.answer)


@pytest.fixture
def connected(monkeypatch):
    """As if the Hub took connections."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(connection, "reachable", lambda: True)


@pytest.mark.usefixtures("connected")
def test_hub_unreachable_says_how_to_use_a_local_file(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"openai/gsm8k \(train\).*local copy.*\.jsonl") as error:
        open_problems("gsm8k")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("connected")
def test_hub_connection_lost_on_the_way(monkeypatch):
    def rows():
        yield {"problem": "Q?", "answer": "1"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    stream = iter(open_problems("somebody/new-set"))
    assert next(stream).key == "somebody/new-set/train/0"
    with pytest.raises(InputError, match=r"somebody/new-set \(train\) cannot be read \(connection reset\)"):
        next(stream)


def test_jsonl_is_read_lazily(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "1+1", "answer": 2}, '{"problem": "2+', {"problem": "3"}])
    stream = iter(open_problems(path))
    first = next(stream)
    assert (first.key, first.answer, first.source) == ("a/train/0", "2", "a")
    with pytest.raises(InputError, match=r"a\.jsonl, row 2: corrupt JSON"):
        next(stream)


def test_bad_rows_are_counted_on_request_and_keys_stay(tmp_path):
    good = [{"problem": f"{i}+1", "answer": i + 1} for i in range(4)]
    rows = [good[0], '{"problem": ', "", '["no object"]', {"problem": "x"}, {"problem": " ", "answer": 1}, *good[1:]]
    rows.append({"problem": "y", "answer": float("nan")})
    source = open_problems(write_jsonl(tmp_path / "a.jsonl", rows), skip_bad_rows=True)
    for _ in range(2):  # a second pass counts anew
        assert [p.prompt.split()[0] for p in source] == ["0+1", "1+1", "2+1", "3+1"]
        assert source.dropped == {"corrupt": 2, "no_answer": 2, "no_problem": 1} and source.kept == 4
    assert [p.key for p in source] == [f"a/train/{row}" for row in (0, 5, 6, 7)]


def test_error_names_line_as_an_editor_counts_it(tmp_path):
    rows = [{"question": "a", "answer": "#### 1"}, "", {"question": "b", "answer": "forgot the mark"}]
    with pytest.raises(InputError, match=r"^\S+a\.jsonl, row 3: no answer after '####'; .+$"):
        open_problems(write_jsonl(tmp_path / "a.jsonl", rows)).problems()


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_array_names_its_corrupt_row(tmp_path, bom):
    rows = [
        {"problem": "1+1", "difficulty": 1.5, "answer": "2"},
        {"problem": "1+2", "difficulty": "Error", "answer": 3},
    ]
    text = json.dumps(rows, indent=1)[:-1]
    path = tmp_path / "a.json"
    path.write_bytes(bom + text.encode() + b"]\n")
    assert [(p.answer, p.level) for p in open_problems(str(path))] == [("2", 2), ("3", None)]
    path.write_bytes(bom + text.encode() + b', {"problem": ')
    with pytest.raises(InputError, match=r"a\.json, row 3: corrupt JSON"):
        open_problems(str(path), skip_bad_rows=True).problems()
    path.write_bytes(bom + text.encode())  # cut off after a whole row
    with pytest.raises(InputError, match=r"a\.json, row 3: corrupt JSON"):
        open_problems(str(path)).problems()


def test_csv_and_parquet_keep_answers_as_written(tmp_path):
    rows = {"question": ["a, b", "c", "d"], "gold": ["007", "1e5", "None"]}
    text = '{0}question,gold\n{1}"a, b",007\n{1}c,1e5\n{1}d,None\n'
    (tmp_path / "a.csv").write_text(text.format("", ""))
    (tmp_path / "excel.csv").write_bytes(("\ufeff" + text.format("", "").replace("\n", "\r\n")).encode())
    (tmp_path / "indexed.csv").write_text(text.format(",", "0,"))
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "b.parquet"))
    for file in ("a.csv", "excel.csv", "indexed.csv", "b.parquet"):
        problems = open_problems(str(tmp_path / file), prompt=PromptSettings(suffix="")).problems()
        assert [(p.prompt, p.answer) for p in problems] == list(zip(*rows.values(), strict=True)), file


@pytest.mark.parametrize("folder", ["plain", "odd [1] *"])
def test_file_names_are_taken_literally(tmp_path, folder):
    (tmp_path / folder).mkdir()
    path = write_jsonl(tmp_path / folder / "train-00000-of-00001.jsonl", [{"problem": "p", "answer": 1}])
    assert open_problems(path).problems()[0].key == f"{folder}/train/0"


@pytest.mark.parametrize("suffix", [BOXED_SUFFIX, "Answer in \\boxed{}.", ""])
def test_suffix_replaces_the_one_in_the_file(tmp_path, suffix):
    rows = [{"problem": f"Find x. {BOXED_SUFFIX}", "answer": 1}, {"problem": "Find y.", "answer": 1}]
    problems = open_problems(write_jsonl(tmp_path / "a.jsonl", rows), prompt=PromptSettings(suffix=suffix)).problems()
    assert [p.prompt for p in problems] == [f"Find {v}. {suffix}".strip() for v in "xy"]


def test_a_set_of_bad_rows_alone_is_empty(tmp_path):
    source = open_problems(write_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": ""}] * 9), skip_bad_rows=True)
    with pytest.raises(InputError, match=r"is empty: all 9 rows were dropped \(9 no_answer\)"):
        source.problems()


def test_limit_counts_problems_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": str(i // 2), "answer": i} for i in range(10)] + ["{"])
    assert len(open_problems(path, limit=5).problems()) == 5
    with pytest.raises(InputError, match="limit = 0"):
        open_problems(path, limit=0)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("$\\boxed{7}$", "7"),
        ("First \\boxed{1}, so \\boxed{\\{1, 2\\}}.", "\\{1, 2\\}"),
        (27.0, "27"),
        (0.5, "0.5"),
        (-3, "-3"),
        ("-1.0", "-1"),
        ("1.50", "1.50"),
        (["58,500"], "58,500"),
        ("\\text{Evelyn}", "\\text{Evelyn}"),
    ],
)
def test_gold_answers_become_clean_text(value, answer):
    assert clean_answer(value) == answer


def test_missing_unknown_empty_and_unreadable_are_one_line_each(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "latin.jsonl").write_bytes(b'{"problem": "caf\xe9", "answer": 1}\n')
    write_jsonl(tmp_path / "odd.jsonl", [{"text": "hello"}])
    (tmp_path / "folder").mkdir()
    cases = {
        "absent.jsonl": "No data file .*absent.jsonl",
        "notes.txt": "notes.txt is none of .jsonl",
        "folder": "folder holds no data file",
        "empty.jsonl": "is empty: it has no rows",
        "empty.json": "is empty: it has no rows",
        "empty.csv": "empty.csv",
        "broken.parquet": "broken.parquet cannot be read as parquet",
        "latin.jsonl": "latin.jsonl cannot be read as jsonl",
        "odd.jsonl": "odd.jsonl, row 1: columns text are of no known schema",
    }
    for file, message in cases.items():
        with pytest.raises(InputError, match=message) as error:
            open_problems(str(tmp_path / file)).problems()
        assert "\n" not in str(error.value)
    for path in ("gsm9k", "dapo-math-17k"):
        with pytest.raises(InputError, match=rf"No problem set '{path}'.*gsm8k, svamp, dapo_math_17k"):
            open_problems(path)
