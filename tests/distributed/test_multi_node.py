"""Two "machines" of one process each on the loopback device, started as the page on several machines says."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
import torch
from launch import ROOT, SETTINGS, difference, finished, launch, saving

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "multi_node.md").read_text(encoding="utf-8")


def flags_of_page() -> list[str]:
    """Torchrun's flags before the module, as the page gives them."""
    command = re.search(r"^torchrun (.*) \\\n +-m sppo_lit\.cli run \S+ (--num_nodes 2) ", PAGE, re.MULTILINE)
    assert command, "the page has lost its command"
    return command[1].split()


def test_two_machines_train_what_one_process_trains(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"$FIRST": "127.0.0.1", "29500": str(port), "4": "1"}
    commands = []
    for node in range(2):
        torchrun = [{**values, "$NODE": str(node)}.get(flag, flag) for flag in flags_of_page()]
        commands.append(
            [
                *(sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "sppo_lit.cli", "run"),
                *("recipes/quickstart.yaml", *SETTINGS, "--num_nodes=2", "--devices=1", "--strategy=fsdp"),
                *(f"--trainer.default_root_dir={tmp_path}", "--max_epochs=2", *saving(tmp_path / "weights")),
            ]
        )
    finished(commands)
    assert len(list(tmp_path.rglob("metrics.csv"))) == 1, "one run folder for all machines"
    ranks = [torch.load(tmp_path / "weights" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    one = launch(tmp_path / "one", "--max_epochs=2")
    for weights in ranks:
        assert difference(one.ranks[0], weights) <= 1e-5
