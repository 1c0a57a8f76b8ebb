"""The quickstart as a newcomer runs it: it learns, and what it leaves behind can be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_files import csv_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sppo_lit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def held_out(metrics: Path) -> list[float]:
    """Greedy accuracy of every evaluation of a run."""
    return [float(row["val/accuracy"]) for row in csv_rows(metrics) if row.get("val/accuracy")]


@pytest.mark.slow
@pytest.mark.curves
def test_quickstart_gains_twenty_points_and_its_checkpoint_and_exports_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = ["--trainer.default_root_dir", str(tmp_path)]
    assert main(["run", "recipes/quickstart.yaml", "--seed_everything", "4", *folder]) == 0
    screen = capsys.readouterr().out
    run = tmp_path / "quickstart" / "version_0"
    accuracies = held_out(run / "metrics.csv")
    assert accuracies[-1] - accuracies[0] >= 0.20
    for made in ("curves.png", "hf/policy", "hf/critic", "checkpoints/last.ckpt"):
        assert (run / made).exists()
        assert made in re.sub(r"[\s│]+", "", screen), "the end of the run says where everything is"

    policy = AutoModelForCausalLM.from_pretrained(run / "hf" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(run / "hf" / "policy")
    critic = AutoModelForSequenceClassification.from_pretrained(run / "hf" / "critic")
    prompt = tokenizer("(2+3)*4=", return_tensors="pt").input_ids
    answer = tokenizer.decode(policy.generate(prompt, do_sample=False, max_new_tokens=40)[0, prompt.shape[1] :])
    assert "\\boxed{" in answer
    assert critic(prompt).logits.shape == (1, 1)

    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert main(["run", "validate", "recipes/quickstart.yaml", "--ckpt_path", checkpoint, *folder]) == 0
    (validated,) = (tmp_path / "quickstart-validate").glob("version_*/metrics.csv")
    assert held_out(validated) == [accuracies[-1]]
