"""The examples of docs/extending.md and of README, as they are printed there, take part in a real training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_helpers import HELD_OUT, ROOT, recipe

from sppo_lit.cli.main import translate
from sppo_lit.cli.recipe_cli import RecipeCLI, run
from sppo_lit.types import TrainingBatch

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def dotted(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`{model: {algorithm: x}}` → ("model.algorithm", x), two levels deep: groups are replaced, not merged."""
    for group, entries in settings.items():
        for key, value in entries.items():
            if key in ("reward", "rollout", "verifier"):
                yield from ((f"{group}.{key}.{name}", entry) for name, entry in value.items())
            else:
                yield f"{group}.{key}", value


def trained(section: str, folder: Path, changes: dict[str, Any] | None = None) -> tuple[RecipeCLI, TrainingBatch]:
    """Write the section's file, train two iterations with its settings; the run, and its last batch."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    [code], [settings] = blocks(text, "python"), blocks(text, "yaml")
    (folder / re.match(r"# (\w+\.py)\n", code)[1]).write_text(code, encoding="utf-8")
    file = recipe(folder, {**dict(dotted(yaml.safe_load(settings))), **(changes or {})})
    done = run(translate([str(file)]), RecipeCLI)
    assert done.model.iteration == 2
    batch = done.model.last_rollouts
    assert isinstance(batch, TrainingBatch)
    return done, batch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in recipes are relative to the working directory."""
    monkeypatch.chdir(tmp_path)


def test_algorithm(tmp_path: Path) -> None:
    # The verdicts of an untrained model are all 0: rewards that differ come from a function.
    (tmp_path / "even.py").write_text("def even(response, gold):\n    return len(response) % 2\n", encoding="utf-8")
    done, batch = trained("An algorithm", tmp_path, {"model.reward.custom": {"even.py:even": 1.0}})
    rewards = batch.rewards.view(-1, 4)
    assert done.model.spec.title == "Half and half" and len(rewards) == 8 and rewards.std() > 0
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / 3
    expected = rewards - (batch.values.view(-1, 4) + others) / 2
    torch.testing.assert_close(batch.advantages.view(-1, 4), expected)


def test_reward(tmp_path: Path) -> None:
    _, batch = trained("A reward", tmp_path)
    brief = torch.tensor([max(0.0, 1 - len(scored.text) / 100) for scored in batch.scored])
    assert brief.std() > 0
    torch.testing.assert_close(batch.rewards, batch.labels + 0.5 * brief)
    assert set(batch.labels.tolist()) <= {0.0, 1.0}


def test_problems(tmp_path: Path) -> None:
    done, batch = trained("Problems", tmp_path)
    prompts = {scored.problem.prompt for scored in batch.scored}
    held_out = [problem for [name] in [done.datamodule.val_sets] for problem, _ in done.datamodule.val_sets[name]]
    assert len(prompts) == 8 and all(re.fullmatch(r"\d+\+\d+=", prompt) for prompt in prompts)
    assert not any(scored.problem.answer.endswith("0") for scored in batch.scored)
    assert len(held_out) == 8 and all(problem.answer.endswith("0") for problem in held_out)


def test_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its copy of the weights is that of the policy at every sampling: the run equals one without the copy."""
    own, _ = trained("A rollout engine", tmp_path, HELD_OUT)
    said = re.search(r"engine: (\d+) responses, (\d+) tokens, weights taken over (\d+) times", capsys.readouterr().out)
    assert said and int(said[1]) == 2 * 8 + 3 * 4 and int(said[2]) > int(said[1]) and int(said[3]) == 3
    plain = run(translate([str(recipe(tmp_path, HELD_OUT))]), RecipeCLI)
    for (name, value), other in zip(own.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_verifier(tmp_path: Path) -> None:
    (tmp_path / "size.py").write_text("def size(response, gold):\n    return len(response)\n", encoding="utf-8")
    _, batch = trained("A verifier", tmp_path, {"model.reward.custom": {"size.py:size": 0.1}})
    answers = [(re.findall(r"\d+", scored.text) or [None])[-1] for scored in batch.scored]
    assert [scored.verdict.answer for scored in batch.scored] == answers and any(answers)
    sizes = torch.tensor([len(scored.text) for scored in batch.scored], dtype=torch.float32)
    torch.testing.assert_close(batch.rewards, batch.labels + 0.1 * sizes)


def test_readme_without_the_command_line(tmp_path: Path) -> None:
    """The block runs as it is, in a process of its own, with two of its ten iterations."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in blocks(readme, "python") if "Trainer" in block]
    assert len(code.splitlines()) <= 15
    shorter = {"max_epochs=10": "max_epochs=2", "check_val_every_n_epoch=5": "check_val_every_n_epoch=2"}
    for old, new in shorter.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    (tmp_path / "data").symlink_to(ROOT / "data")
    code += "\nassert module.iteration == 2 and 'val/accuracy' in trainer.callback_metrics"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    run_folder = tmp_path / "lightning_logs" / "version_0"
    assert (run_folder / "hf" / "policy" / "config.json").is_file()
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()
