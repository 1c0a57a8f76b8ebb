"""Checkpoints in distributed form: two processes write, any number read, and what is not whole is refused."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launch import ROOT, equal
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from sppo_lit.cli.main import main
from sppo_lit.cli.resume import DamagedError, check_checkpoint
from sppo_lit.distributed.checkpoints import ShardWriter, load_shards, publish, read_meta, whole_checkpoint
from sppo_lit.distributed.sharding import sharded, whole_value
from sppo_lit.errors import InputError
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.models.policy import Policy
from sppo_lit.settings import ModelSource

SOURCE = ModelSource(str(ROOT / "data" / "arithmetic" / "warmstart"))


def small() -> Policy:
    """The policy on one process."""
    return Policy(load_causal_lm(SOURCE, load_tokenizer(SOURCE)))


class Trained(nn.Module):
    """A sharded policy with a counter and an optimizer, as a module of ours."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = load_tokenizer(SOURCE)
        self.policy = sharded(
            lambda empty: Policy(load_causal_lm(SOURCE, tokenizer, empty)), init_device_mesh("cpu", (2,))
        )
        self.register_buffer("iterations_done", torch.zeros((), dtype=torch.int64))
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=0.01)

    def learn(self) -> None:
        for i, p in enumerate(self.policy.parameters()):
            p.grad = p.detach() * (i + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.iterations_done += 1

    def checkpoint(self) -> dict[str, Any]:
        return {
            "state_dict": self.state_dict(keep_vars=True),
            "optimizer_states": [self.optimizer.state_dict()],
            "epoch": 3,
        }

    def whole(self) -> dict[str, torch.Tensor]:
        values = {name: whole_value(value).clone() for name, value in self.state_dict().items()}
        for key, entries in self.optimizer.state_dict()["state"].items():
            values |= {f"{key} {name}": whole_value(value).clone() for name, value in entries.items()}
        return values


def _on_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module, runs = Trained(), folder / "run"
    writer = ShardWriter()
    found: dict[str, Any] = {"states": []}
    temporary = runs / ".saving.tmp"
    for iteration in (1, 2, 3):
        module.learn()
        found["states"].append(module.whole())
        names = ["best", "last"] if iteration == 1 else ["last"]
        writer.save(module.checkpoint(), temporary, partial(publish, temporary, runs, names, iteration))
        module.learn()  # while it is written
        module.iterations_done -= 1
    writer.wait()

    def broken() -> None:
        raise OSError("no space left")

    writer.save(module.checkpoint(), runs / "unpublished", broken)
    try:
        writer.wait()
        found["told"] = ""
    except OSError as error:
        found["told"] = str(error)
    again = Trained()
    loaded = load_shards(runs / "last.ckpt", again, [again.optimizer])
    again.optimizer.load_state_dict(loaded["optimizer_states"][0])
    found["again"], found["epoch"] = again.whole(), loaded["epoch"]
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of checkpoints of two ranks, and what each of them found."""
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(_on_rank, (folder,), nprocs=2)
    return folder / "run", [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_shards_are_those_of_the_moment_of_saving_though_training_goes_on(
    written: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, found = written
    for name, state in zip(("best", "previous", "last"), found[0]["states"], strict=True):
        checkpoint = whole_checkpoint(folder / f"{name}.ckpt")
        values = dict(checkpoint["state_dict"])
        for key, entries in checkpoint["optimizer_states"][0]["state"].items():
            values |= {f"{key} {entry}": value for entry, value in entries.items()}
        assert equal(values, state), name
        assert checkpoint["epoch"] == 3 and checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.01


def test_every_rank_reads_its_shards_again(written: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank in written[1]:
        assert equal(rank["again"], rank["states"][-1]) and rank["epoch"] == 3


def test_a_failure_on_rank_zero_is_one_on_all(written: tuple[Path, list[dict[str, Any]]]) -> None:
    assert all("no space left" in rank["told"] for rank in written[1])


def test_three_links_and_no_folder_too_many(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = written
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("unpublished", "cut"))
    assert names == ["best.ckpt", "iteration-1", "iteration-2", "iteration-3", "last.ckpt", "previous.ckpt"]
    assert [check_checkpoint(folder / f"{name}.ckpt", True) for name in ("best", "previous", "last")] == [1, 2, 3]


@pytest.mark.parametrize("file", [".metadata", "meta.pt", "__1_0.distcp", "__0_0.distcp"])
def test_what_is_not_whole_is_refused(written: tuple[Path, list[dict[str, Any]]], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "iteration-3"
    folder.mkdir()
    for part in (written[0] / "iteration-3").iterdir():
        content = part.read_bytes()
        (folder / part.name).write_bytes(content[: len(content) // 2] if part.name == file else content)
    with pytest.raises(DamagedError, match="damaged or not a checkpoint"):
        check_checkpoint(folder, True)
    (folder / file).unlink()
    with pytest.raises(DamagedError, match="damaged or not a checkpoint"):
        check_checkpoint(folder, True)


def test_a_module_without_sharding_reads_them_too(written: tuple[Path, list[dict[str, Any]]]) -> None:
    module = nn.Module()
    module.policy = small()
    module.register_buffer("iterations_done", torch.zeros((), dtype=torch.int64))
    module.load_state_dict(whole_checkpoint(written[0] / "last.ckpt")["state_dict"])
    module.policy = nn.Linear(2, 2)
    with pytest.raises(InputError, match="of a different model"):
        load_shards(written[0] / "last.ckpt", module, [])


def test_it_becomes_one_file(
    written: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = written[0] / "previous.ckpt", tmp_path / "whole.ckpt"
    assert main(["convert", str(source), str(file)]) == 0
    assert check_checkpoint(file, True) == 2
    converted = torch.load(file, weights_only=True)
    assert equal(converted["state_dict"], whole_checkpoint(source)["state_dict"])
    assert len(converted["optimizer_states"][0]["state"]) == len(list(small().parameters()))
    capsys.readouterr()
    for wrong, line in (
        ((source, file), f"{file} exists; give another name"),
        ((file, tmp_path / "b"), f"{file} is one file already"),
        ((tmp_path / "a", tmp_path / "b"), "does not exist"),
    ):
        assert main(["convert", *map(str, wrong)]) == 2
        assert line in capsys.readouterr().err


KILLS = 20 if "SPPO_THOROUGH" in os.environ else 8


@pytest.mark.slow
def test_kills_while_a_checkpoint_is_written_lose_nothing_older(tmp_path: Path) -> None:
    """Kills of one rank at random moments; of the other at once, as `processes` does it."""
    moments, folder, oldest, interrupted = random.Random(0), tmp_path / "run", 0, 0
    folder.mkdir()
    for _ in range(KILLS):
        for file in folder.glob("at*"):
            file.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__).parent / "writing_ranks.py"), str(folder), str(port)]
        ranks = [
            subprocess.Popen([*command, str(rank)], env={**os.environ, "PYTHONPATH": str(ROOT)}) for rank in (0, 1)
        ]
        try:
            start = time.monotonic()
            while len(list(folder.glob("at*"))) < 2:
                assert time.monotonic() < start + 240 and all(rank.poll() is None for rank in ranks)
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 1.5))
            before = read_meta(folder / "last.ckpt")["epoch"] if (folder / "last.ckpt").exists() else 0
        finally:
            first = moments.randrange(2)
            for rank in (ranks[first], ranks[1 - first]):
                rank.kill()
                rank.wait()
        interrupted += (folder / ".saving.tmp").exists()
        if not (folder / "last.ckpt").exists():
            assert before == 0
            continue
        for name in ("last.ckpt", "previous.ckpt"):
            if (folder / name).exists():
                checkpoint = whole_checkpoint(folder / name)
                assert all((w == checkpoint["epoch"]).all() for w in checkpoint["state_dict"].values())
        newest = whole_checkpoint(folder / "last.ckpt")["epoch"]
        assert newest >= max(before, oldest)
        oldest = newest
    print(f"{interrupted} of {KILLS} kills interrupted a checkpoint; iteration {oldest} reached")
    assert interrupted >= KILLS // 2 and oldest >= KILLS, "too few kills came while a checkpoint was written"
