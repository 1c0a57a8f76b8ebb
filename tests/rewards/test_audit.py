"""The audit of data sets and of saved completions."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sppo_lit.cli.audit import audit, show
from sppo_lit.cli.main import main
from sppo_lit.errors import InputError
from sppo_lit.rewards.accepted import AcceptedLog, read_accepted
from sppo_lit.rewards.verifiers import make_verifier
from sppo_lit.settings import VerifierSettings
from sppo_lit.types import Problem, Verdict


def problems(*golds: str) -> list[Problem]:
    return [Problem(key=f"set/train/{i}", prompt=f"Problem {i}", answer=gold) for i, gold in enumerate(golds)]


def test_an_audit_finds_what_is_wrong_and_only_that(tmp_path: Path) -> None:
    rows = problems("5", r"\frac{1", "", r"x^2+1", "1,234", r"(2,\infty)", r"x^^2", r"\text{two lines}", "C")
    rows.append(Problem(key="set/train/9", prompt="Problem 0", answer="6"))
    report = audit(rows)
    assert [(f.key[-1], f.kind) for f in report.findings] == [
        ("1", "unparsable"),
        ("2", "unparsable"),
        ("4", "ambiguous"),
        ("6", "unparsable"),
        ("8", "ambiguous"),
        ("9", "conflict"),
    ]
    assert report.rows == 10 and report.unusable == 3
    report.write(tmp_path / "new" / "report.json")
    read = json.loads((tmp_path / "new" / "report.json").read_text())
    assert read["unusable"] == 3 and read["findings"][0]["detail"] == "unbalanced braces: cut off?"


def test_saved_completions_are_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    lines = [
        {"problem": "set/train/0", "text": r"\boxed{5}", "reward": 1.0},
        {"problem": "set/train/0", "text": r"\boxed{5.0}", "reward": 0.0},
        {"problem": "other", "gold": "7", "text": r"\boxed{8}", "reward": 1.0, "finished": False},
        {"gold": "7", "response": "7", "reward": 0, "finished": False},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    report = audit(problems("5"), path)
    assert report.completions == 4
    assert [(d.line, d.recorded, d.reward, d.reason) for d in report.disagreements] == [
        (2, 0.0, 1.0, "correct"),
        (3, 1.0, 0.0, "wrong"),
    ]
    assert report.reasons == {"correct": 2, "wrong": 1, "truncated": 1}
    console = Console(record=True, width=120)
    show(report, console)
    assert "2 verdicts differ" in console.export_text()


def test_saved_completions_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text(json.dumps({"gold": "5", "text": r"\boxed{5}", "reward": 1.0}))
    read_text, reads = Path.read_text, []

    def count(self: Path, *args: Any, **kwargs: Any) -> str:
        reads.append(self)
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", count)
    audit(problems("5"), path)
    assert reads.count(path) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: not JSON"), ("5", "not a JSON object"), ('{"text": "a", "gold": "b"}', "needs 'text', 'reward'")],
)
def test_broken_completions_name_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        audit(problems("5"), path)
    with pytest.raises(InputError, match="cannot read"):
        audit(problems("5"), tmp_path / "none.jsonl")


def test_markup_in_answers_is_shown_as_it_is() -> None:
    console = Console(record=True, width=120)
    show(audit(problems(r"\frac{[red]1")), console)
    assert "[red]1" in console.export_text()


def test_the_command_reads_a_file_and_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, saved, out = tmp_path / "mine.jsonl", tmp_path / "saved.jsonl", tmp_path / "report.json"
    golds = ["5", r"\frac{1", "7", "8"]
    rows = [{"problem": f"Problem {i}", "answer": gold} for i, gold in enumerate(golds)] + [{"problem": "No answer"}]
    data.write_text("\n".join(map(json.dumps, rows)))
    saved.write_text(json.dumps({"problem": "mine/train/0", "text": r"\boxed{5}", "reward": 0.0}))
    assert main(["audit", str(data), "--completions", str(saved), "--json", str(out), "--limit", "3"]) == 0
    shown = capsys.readouterr().out
    assert "3 rows" in shown and "mine/train/1" in shown and "1 verdicts differ" in shown
    report = json.loads(out.read_text())
    assert report["rows"] == 3 and report["unusable"] == 1 and report["disagreements"][0]["reward"] == 1
    assert main(["audit", str(data)]) == 0
    assert "left out: 1 no_answer" in capsys.readouterr().out


def test_the_command_finds_a_problem_with_two_gold_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "mine.jsonl"
    rows = [{"problem": "2+2=?", "answer": answer} for answer in ("4", "5", "4")]
    data.write_text("\n".join(map(json.dumps, rows)))
    assert main(["audit", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "1 conflict" in shown and "4 in mine/train/0" in shown and "left out: 1 other_answer, 1 duplicate" in shown


def test_accepted_answers_are_kept_with_their_rules_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "accepted.jsonl"
    rows = [("5", "5"), ("5", "5.0"), (r"\frac{1}{2}", "0.5"), ("7", "8"), ("x+1", "1+x"), ("5", r"5\text{ cm}")]
    verifier = make_verifier(VerifierSettings(workers=1, audit=str(path)))
    verdicts = verifier.score([f"\\boxed{{{answer}}}" for _, answer in rows], [gold for gold, _ in rows])
    verifier.close()
    assert [v.rule for v in verdicts] == ["text", "number", "number", "", "symbolic", "unit left out + number"]
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(k["rule"], k["answer"]) for k in kept] == [
        ("number", "5.0"),
        ("number", "0.5"),
        ("symbolic", "1+x"),
        ("unit left out + number", r"5\text{ cm}"),
    ]
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--accepted", str(path)])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "4 accepted answers" in shown and shown.index("by symbolic") < shown.index("2 by number")


def test_only_a_sample_of_a_common_rule_is_kept(tmp_path: Path) -> None:
    log = AcceptedLog(tmp_path / "accepted.jsonl")
    common = [Verdict(1.0, "correct", f"{n}.0", rule="number") for n in range(3000)]
    log.add([str(n) for n in range(3000)], common)
    log.add(["x+1"], [Verdict(1.0, "correct", "1+x", rule="symbolic")])
    kept = list(read_accepted(tmp_path / "accepted.jsonl"))
    assert 100 < len(kept) < 300 and kept[-1] == {"rule": "symbolic", "gold": "x+1", "answer": "1+x"}
    (tmp_path / "broken").write_text("{}")
    with pytest.raises(InputError, match="line 1"):
        list(read_accepted(tmp_path / "broken"))
    with pytest.raises(InputError, match=r"model\.verifier\.audit"):
        AcceptedLog(tmp_path / "broken" / "below")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "DATASET"), (["x.jsonl", "--wrong"], "--wrong"), (["no_such_set"], "no_such_set"), (["x.jsonl"], "x.jsonl")],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
