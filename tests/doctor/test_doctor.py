"""`sppo doctor` through the command line: a sound recipe is all green, and each mistake makes its red."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_helpers import ROOT, recipe, refused
from rich.console import Console

from sppo_lit.cli import doctor as doctor_cli
from sppo_lit.cli.main import main
from sppo_lit.doctor.checks import truncation_check
from sppo_lit.doctor.report import Check, show
from sppo_lit.models import critics
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.policy import Policy, TokenTerms
from sppo_lit.rollout import torch_engine
from sppo_lit.types import Completion
from sppo_lit.utils.console import console

pytestmark = pytest.mark.filterwarnings("ignore")
WARM = ROOT / "data" / "arithmetic" / "warmstart"
SOUND: dict[str, Any] = {"model.policy": {"path": str(WARM)}, "model.sampling.max_new_tokens": 64}


@pytest.fixture(autouse=True)
def quiet(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 200)


class Report(dict[str, tuple[bool, str]]):
    """Check → (whether it is good, its result)."""

    shown = ""

    @property
    def bad(self) -> set[str]:
        return {name for name, (good, _) in self.items() if not good}


def doctor(capsys: pytest.CaptureFixture[str], file: Path, *flags: str) -> Report:
    """Run it, and check that exit code and table agree."""
    capsys.readouterr()
    code = main(["doctor", str(file), *flags])
    shown = capsys.readouterr().out
    cells = [line.strip("│\n").split("│") for line in shown.splitlines() if line.count("│") == 4]
    cells = [c for c in cells if c[1].strip() in ("good", "bad")]
    report = Report({c[0].strip(): (c[1].strip() == "good", c[2]) for c in cells})
    report.shown = shown
    assert code == int(bool(report.bad)), shown
    return report


@pytest.mark.parametrize(("cut", "good"), [(0, True), (1, True), (2, False), (4, False)])
def test_more_than_a_quarter_of_truncated_responses_is_red(cut: int, good: bool) -> None:
    sample: Any = SimpleNamespace(
        completions=[Completion([1], [0.0], finished=i >= cut) for i in range(4)],
        sequences=SimpleNamespace(response_lengths=torch.ones(4)),
        module=SimpleNamespace(sampling=SimpleNamespace(max_new_tokens=8)),
    )
    check = truncation_check(sample)
    assert check.good is good and f"{cut} of 4 responses ({25 * cut}%)" in check.detail


def test_a_sound_recipe_is_all_green_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, {**SOUND, "data.val": [{"path": "arithmetic", "limit": 2}]})
    before = set(tmp_path.rglob("*"))
    report = doctor(capsys, file, "--devices", "2", "--strategy", "fsdp")
    assert not report.bad and len(report) == 11, report
    assert set(tmp_path.rglob("*")) == before
    assert "0.0e+00" in report["first ratio"][1] and "300 of 300" in report["gold answers"][1]


def test_token_critics_and_supervised_training_are_looked_at_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = doctor(capsys, recipe(tmp_path, {**SOUND, "model.algorithm": "ppo"}))
    assert not report.bad and "V alone" in report["padding, critic"][1]
    flags = ["--model.init_args.policy.init=pretrained", f"--model.init_args.policy.path={WARM}"]
    report = doctor(capsys, ROOT / "recipes" / "arithmetic" / "warmup.yaml", *flags, "--data.val=[]")
    assert not report.bad - {"accuracy"} and "no critic" in report["padding, critic"][1]


def with_template(tmp_path: Path, template: str) -> dict[str, Any]:
    """The warm-started model with a chat template and a beginning-of-sequence token."""
    folder = tmp_path / "templated"
    shutil.copytree(WARM, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "m", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {**SOUND, "model.policy": {"path": str(folder)}}


TURN = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}END{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("mm" + TURN.replace("END", "<eos>"), "begin with m twice"),
        ("m" + TURN.replace("END", "d"), "ends an answer with d, which ends no response"),
        ("m1+1", "decodes to another text"),
    ],
    ids=["second BOS", "another end of turn", "text lost"],
)
def test_a_tokenizer_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, told: str
) -> None:
    report = doctor(capsys, recipe(tmp_path, with_template(tmp_path, template)))
    assert "tokenizer" in report.bad and told in report["tokenizer"][1]


def test_a_good_template_is_green(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = with_template(tmp_path, "m" + TURN.replace("END", "<eos>"))
    assert "tokenizer" not in doctor(capsys, recipe(tmp_path, changes)).bad


def test_everything_is_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor(capsys, recipe(tmp_path, {**SOUND, "model.sampling.max_new_tokens": 1}))
    assert {"truncation", "accuracy"} == report.bad and "16 of 16" in report["truncation"][1]
    assert "100% cut off before an answer" in report.shown and "raise model.sampling.max_new_tokens" in report.shown


def test_golds_that_nothing_equals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the run itself would leave them out."""
    rows = [{"problem": f"1+{i}", "answer": str(1 + i)} for i in range(9)] + [{"problem": "2+2", "answer": "\\frac{"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = doctor(capsys, recipe(tmp_path, {**SOUND, "data.train.path": str(tmp_path / "rows.jsonl")}))
    assert "gold answers" in report.bad and "9 of 10" in report["gold answers"][1]


def test_a_policy_that_is_another_with_gradients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Policy.forward

    def random(self: Policy, *inputs: Any) -> TokenTerms:
        terms = forward(self, *inputs)
        return terms._replace(logprobs=terms.logprobs + 0.01 * torch.is_grad_enabled())

    monkeypatch.setattr(Policy, "forward", random)
    assert doctor(capsys, recipe(tmp_path, SOUND)).bad == {"first ratio"}


def test_padding_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Policy.forward

    def batched(self: Policy, ids: torch.Tensor, *inputs: Any) -> TokenTerms:
        terms = forward(self, ids, *inputs)
        return terms._replace(logprobs=terms.logprobs * (1 + 0.1 * (len(ids) > 1)))

    def last_column(self: ScalarCritic, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        return self.model.get_submodule("score")(hidden).squeeze(-1)

    monkeypatch.setattr(Policy, "forward", batched)
    monkeypatch.setattr(critics.ScalarCritic, "forward", last_column)
    report = doctor(capsys, recipe(tmp_path, SOUND))
    assert report.bad == {"padding, policy", "padding, critic", "sampler", "engine"}


def test_a_sampler_that_forgets_the_temperature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch_engine.draw
    monkeypatch.setattr(torch_engine, "draw", lambda logits, u, sampling: draw(logits * 0.9, u, sampling))
    assert "sampler" in doctor(capsys, recipe(tmp_path, SOUND)).bad


def test_weights_that_reach_the_sampler_too_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first responses are the policy's; after a step it still samples from the weights before."""
    engine = f"{ROOT / 'benchmarks' / 'mismatched_engines.py'}"
    changes = {**SOUND, "model.lora": {"rank": 4}}
    report = doctor(capsys, recipe(tmp_path, {**changes, "model.rollout.engine": f"{engine}:stale"}))
    assert report.bad == {"engine"} and "0 of" in report["engine"][1]
    assert not doctor(capsys, recipe(tmp_path, changes)).bad


def test_too_little_memory_and_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_cli, "free_bytes", lambda folder: 10**6)
    report = doctor(capsys, recipe(tmp_path, SOUND), "--no-load", "--memory", "0.01")
    assert report.bad == {"memory"}
    advice = report.shown.partition("what to do about memory\n")[2]
    assert "\n  lower model.memory.micro_batch_tokens" in advice and "\n  --strategy fsdp on several devices" in advice
    assert "need about" in report["disk"][1], "the disk of the machine that --memory asks about is not known"
    assert doctor(capsys, recipe(tmp_path, SOUND), "--no-load").bad == {"disk"}


def test_what_must_be_copied_is_whole_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    narrow = Console(width=80)
    folder = "a/very/long/path/" * 5 + "of-a-run"
    advice = "lower model.memory.micro_batch_tokens and model.rollout.max_concurrent, one after the other (not below 1)"
    show([Check("disk", False, f"free for {folder}", f"{advice}; more devices")], [], narrow)
    shown = capsys.readouterr().out
    assert f"\n  {advice}\n  more devices\n" in shown and "…" not in shown
    cells = [line.split("│")[3].strip() for line in shown.splitlines() if line.count("│") == 4]
    assert folder in "".join(cells).replace("free for", "")


def test_bad_input_is_refused_as_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["doctor", tmp_path / "none.yaml"], "no such file")
    refused(capsys, tmp_path, ["doctor", recipe(tmp_path), "--problems", "1"], "at least 2")
    refused(capsys, tmp_path, ["doctor", recipe(tmp_path), "--memory", "much"], "doctor: ", "--memory")
    refused(capsys, tmp_path, ["doctor", recipe(tmp_path), "--model.nothing", "1"], "nothing")
    missing = recipe(tmp_path, {"data.train.path": str(tmp_path / "none.jsonl")})
    refused(capsys, tmp_path, ["doctor", missing], "none.jsonl")
    refused(capsys, tmp_path, ["doctor", recipe(tmp_path), "--devices", "3"], "3 processes")
    refused(capsys, tmp_path, ["doctor", recipe(tmp_path), "--no-load", "--devices", "0"], "--devices 0", "auto")
