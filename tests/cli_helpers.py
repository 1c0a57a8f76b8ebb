"""What the tests of the command line share: a recipe with a tiny random model that runs in a second or two."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppo_lit.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "arithmetic" / "base"
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""Changes that make the configuration of `data/arithmetic/base` tiny."""
HELD_OUT = {"data.val": [{"path": "arithmetic", "limit": 4}]}


def recipe(tmp_path: Path, changes: dict[str, Any] | None = None, name: str = "tiny.yaml") -> Path:
    """Write a recipe of a tiny random model; `changes` maps dotted keys to values, `...` removes a key.

    Its runs land in `tmp_path/runs/<name>`.
    """
    content: dict[str, Any] = {
        "seed_everything": 3,
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "default_root_dir": str(tmp_path / "runs")},
        "model": {
            "policy": {"path": str(BASE), "init": "random", "config": dict(SMALL)},
            "batch": {"minibatch_size": 4},
            "sampling": {"temperature": 1.0, "max_new_tokens": 8},
            "policy_optimizer": {"lr": 1e-3},
            "critic_optimizer": {"lr": 1e-2},
            "verifier": {"workers": 1},
        },
        "data": {"train": {"path": "arithmetic"}, "problems_per_epoch": 8, "max_prompt_tokens": 64},
    }
    for dotted, value in (changes or {}).items():
        *parents, key = dotted.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(value)  # a later change may go into it
    file = tmp_path / "recipes" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"# Tiny random model, for tests.\n{yaml.safe_dump(content)}", encoding="utf-8")
    return file


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[Any], *parts: str) -> str:
    """Run the command line, check that it refuses as users expect, and return its one line.

    That is: exit code 2, one line on stderr with all of `parts` in it, no traceback, and no run folder left behind.
    """
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("sppo: ") and error.count("\n") == 1 and error.endswith("\n"), error
    assert len(error) < 700, error
    for part in parts:
        assert part in error, error
    left = set(tmp_path.rglob("*")) - before
    assert not left, f"left behind: {sorted(map(str, left))}"
    return error
