"""The figure of success against episodes: what its table says, and that it has a panel for each study."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from sppo_lit.cli.main import main
from sppo_lit.study.figures import episodes


def study(folder: Path, title: str, finals: dict[str, list[float]]) -> Path:
    """A study whose runs go in a straight line from 20 % to their final success in 1,000 episodes."""
    for algorithm, ends in finals.items():
        for seed, end in enumerate(ends, 1):
            run = folder / f"seed-{seed}" / algorithm / "version_0"
            run.mkdir(parents=True)
            config = {"run_name": algorithm, "seed_everything": seed, "model": {"algorithm": algorithm}}
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            lines = ["step,rollout/accuracy,clock/seconds,clock/sequences,val/accuracy"]
            lines.append("0,,,,0.2")
            lines += [f"{i},0.5,{i},{i * 100},{0.2 + (end - 0.2) * i / 10}" for i in range(1, 11)]
            (run / "metrics.csv").write_text("\n".join(lines))
    content = {"title": title, "cells": {name: {} for name in finals}, "seeds": [1, 2]}
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def test_table_and_panels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = study(tmp_path / "a", "CartPole: the end alone", {"sppo": [1.0, 1.0], "ppo": [0.2, 0.6]})
    second = study(tmp_path / "b", "Hopper", {"sppo": [0.4, 0.4]})
    numbers = episodes.draw([first, second], tmp_path / "figure.png")
    assert list(numbers) == ["CartPole", "Hopper"]
    row = numbers["CartPole"]["sppo"]
    assert (row["seeds"], row["episodes"]) == (2, 1000)
    assert row["final"] == pytest.approx((1.0, 1.0, 1.0)) and row["over_training"][0] == pytest.approx(0.6)
    assert row["episodes_to_50%"] == pytest.approx(375) and row["episodes_to_90%"] == pytest.approx(875)
    ppo = numbers["CartPole"]["ppo"]
    assert ppo["final"] == pytest.approx((0.4, 0.2, 0.6)), "mean and bootstrap interval of 20 and 60 %"
    assert ppo["episodes_to_50%"] == math.inf and (tmp_path / "figure.svg").is_file()
    assert main(["figure", "episodes", str(first), "--out", str(tmp_path / "one.png")]) == 0
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "one.json").read_text())["CartPole"]["ppo"]["curves"]["2"]
    assert written == [[i * 100 for i in range(11)], pytest.approx([0.2 + 0.04 * i for i in range(11)])]
    assert "40.0% [20.0%, 60.0%]" in shown and "∞" in shown
