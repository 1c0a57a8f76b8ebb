"""Template, suffix, system message, worked examples and columns of a problem set, down to what the model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import ROOT, recipe, refused
from test_prompts import TEMPLATE, tokenizer, words

from sppo_lit.cli.main import main
from sppo_lit.problems.prompts import BOXED_SUFFIX, Columns, Example, PromptSettings, render_prompts
from sppo_lit.problems.sources import open_problems
from sppo_lit.utils.console import console

WARM = ROOT / "data" / "arithmetic" / "warmstart"
PAGE = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")


def rows_of(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_the_suffix_belongs_to_the_problem_inside_the_template() -> None:
    prompt = PromptSettings(template="Q: {problem}\nA: \\boxed{x}")
    assert prompt.user_turn("1+1=", "Box it.") == "Q: 1+1= Box it.\nA: \\boxed{x}"
    assert PromptSettings(suffix="").user_turn("1+1=", "Box it.") == "1+1="
    assert PromptSettings(suffix="Now.").user_turn("1+1=", "") == "1+1= Now."
    assert PromptSettings().user_turn("1+1=", "") == "1+1="


def test_recipes_of_models_without_instructions_add_no_suffix_to_problems_of_ones_own() -> None:
    recipes = [*(ROOT / "recipes" / "arithmetic").glob("*.yaml"), ROOT / "recipes" / "quickstart.yaml"]
    assert len(recipes) > 10
    for file in recipes:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
        assert data["prompt"] == {"suffix": ""}, file


def test_examples_are_earlier_turns_or_text_before_the_problem() -> None:
    turns = PromptSettings(template="is {problem}", examples=[Example("what", "it")]).turns("")
    assert words(render_prompts(tokenizer(TEMPLATE), ["is be"], "brief", turns)[0]) == (
        "<s> <system> brief </s> <user> is what </s> <assistant> it </s> <user> is be </s> <assistant>"
    )
    plain = tokenizer().decode(render_prompts(tokenizer(), ["is be"], "brief", [("is what ", "it")])[0])
    assert plain == "<s> brief is what it is be"


def test_columns_of_any_name_in_mappings_and_as_messages(tmp_path: Path) -> None:
    rows = [
        {"task": {"text": "1+1="}, "meta": json.dumps({"gold": 2}), "hard": "Level 3", "how": "Add."},
        {"task": {"text": "1+2="}, "meta": {"gold": "so #### 3"}, "hard": 2.5, "how": "Add.\n\\boxed{3}"},
    ]
    columns = Columns(problem="task.text", answer="meta.gold", solution="how", level="hard")
    problems = open_problems(rows_of(tmp_path, rows), columns=columns, prompt=PromptSettings(suffix="")).problems()
    assert [(p.prompt, p.answer, p.level) for p in problems] == [("1+1=", "2", 3), ("1+2=", "3", 3)]
    assert [p.solution for p in problems] == ["Add.\n\\boxed{2}", "Add.\n\\boxed{3}"]
    chat = [{"turns": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "?"}], "answer": "2"}]
    [problem] = open_problems(rows_of(tmp_path, chat), columns=Columns(problem="turns")).problems()
    assert problem.prompt == f"1+1= {BOXED_SUFFIX}"


@pytest.fixture
def wide(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 200)


def own(tmp_path: Path, **settings: Any) -> Path:
    """A recipe of the shipped model on rows of the user's own, with columns of the user's own."""
    rows = [{"q": f"{a}+{b}=", "a": a + b, "how": f"{a}+{b}={a + b}"} for a in range(2, 8) for b in range(2, 8)]
    columns = {"problem": "q", "answer": "a"}
    return recipe(
        tmp_path,
        {
            "model.policy": {"path": str(WARM)},
            "model.sampling.max_new_tokens": 48,
            "trainer.max_epochs": 1,
            "data.train": {"path": rows_of(tmp_path, rows), "columns": columns, **settings},
            "data.max_prompt_tokens": 128,
        },
    )


@pytest.mark.filterwarnings("ignore")
def test_doctor_shows_what_the_model_reads_and_the_run_says_the_suffix(
    wide: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [{"problem": "1", "response": "2"}]
    prompt = {"system": "(7)", "template": "({problem})", "suffix": "*1", "examples": examples}
    file = own(tmp_path, prompt=prompt)
    main(["doctor", str(file), "--problems", "2"])
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.partition("First prompt of train, as the model reads it (")[2].splitlines()]
    assert lines[1:5] == ["(7)", "", "(1 *1)2", ""] and re.fullmatch(r"\(\d\+\d= \*1\)", lines[5]), shown
    assert main(["run", str(own(tmp_path))]) == 0
    assert f'36 problems; followed by "{BOXED_SUFFIX}" (prompt.suffix)' in capsys.readouterr().out
    assert main(["run", str(own(tmp_path)), "--data.prompt.suffix="]) == 0
    assert "followed by" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_supervised_warmup_on_a_file_of_ones_own(alone: None, tmp_path: Path) -> None:
    file = own(tmp_path, columns={"problem": "q", "answer": "a", "solution": "how"}, prompt={"suffix": ""})
    content = yaml.safe_load(file.read_text())
    settings = {"policy": content["model"]["policy"], "batch": {"minibatch_size": 4}}
    content["model"] = {"class_path": "sppo_lit.SupervisedModule", "init_args": settings}
    file.write_text(yaml.safe_dump(content))
    assert main(["run", str(file)]) == 0


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"prompt": {"template": "Solve it."}}, ("prompt.template 'Solve it.' has no {problem}",)),
        ({"columns": {"problem": "task", "answer": "a"}}, ("row 1: no column 'task' (columns.problem)", "q, a, how")),
        ({"columns": {"question": "q"}}, ("unknown key data.train.columns.question", "did you mean")),
        ({"columns": {"problem": "q", "answer": "how.gold"}}, ("row 1: no column 'how.gold' (columns.answer)",)),
        ({"columns": {"problem": "a", "answer": "a"}}, ("row 1: no problem text",)),
        ({"prompt": {"examples": [{"problem": "1"}]}}, ("response",)),
        ({"prompt": {"examples": "1 + 1"}}, ("examples",)),
        ({"prompt": {"sufix": "?"}}, ("unknown key sufix",)),
        ({"path": "arithmetic"}, ("arithmetic: columns",)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_bad_prompts_and_columns(
    settings: dict[str, Any], parts: tuple[str, ...], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, tmp_path, ["run", own(tmp_path, **settings)], *parts)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_page(
    wide: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [lines], [settings] = (re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S) for kind in ("json", "yaml"))
    [shown] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(lines, encoding="utf-8")
    changes = yaml.safe_load(settings)["data"]
    file = recipe(
        tmp_path,
        {
            "model.policy": {"path": str(WARM)},
            "trainer.max_epochs": 1,
            "model.batch.minibatch_size": 2,
            **{f"data.{key}": value for key, value in changes.items()},
            "data.problems_per_epoch": 2,
            "data.max_prompt_tokens": 256,
        },
    )
    assert main(["run", str(file)]) == 0
    capsys.readouterr()
    main(["doctor", str(file), "--problems", "2"])
    output = "\n".join(line.strip() for line in capsys.readouterr().out.splitlines())
    assert "\n".join(line.strip() for line in shown.splitlines()) in output
