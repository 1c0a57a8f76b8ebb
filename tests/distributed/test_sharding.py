"""Loading under sharding: rank zero alone reads the weights, all ranks get its pieces or its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launch import ROOT, Run, difference, equal, launch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from sppo_lit.distributed import sharding as distributed
from sppo_lit.errors import InputError
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.models.policy import Policy
from sppo_lit.settings import ModelSource

SOURCE = ModelSource(str(ROOT / "data" / "arithmetic" / "warmstart"))


def held(network: torch.nn.Module) -> int:
    """Parameters that this rank holds of a network: its pieces, and what is whole and not empty."""
    sizes = [p.to_local().numel() if hasattr(p, "to_local") else p.numel() * (not p.is_meta) for p in unique(network)]
    return sum(sizes)


def unique(network: torch.nn.Module) -> list[Any]:
    return list({id(p): p for p in network.parameters()}.values())


def on_rank(rank: int, folder: Path) -> None:
    """What each of two processes does; its findings go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tokenizer, calls, most = load_tokenizer(SOURCE), [], 0
    shard, current = distributed.fully_shard, []

    def make(empty: bool) -> Policy:
        calls.append(empty)
        policy = Policy(load_causal_lm(SOURCE, tokenizer, empty))
        if empty:
            current.append(policy)
        return policy

    def watched(module: Any, **settings: Any) -> FSDPModule:
        nonlocal most
        most = max(most, held(current[0]))
        return shard(module, **settings)

    distributed.fully_shard = watched  # type: ignore[assignment]
    network = distributed.sharded(make, mesh)
    whole = {name: value.clone() for name, value in distributed.whole_parameters(network.model)}
    ids = torch.arange(2, 12)[None, :]
    with torch.no_grad():
        logprobs = network(ids[:, :4], torch.tensor([4]), ids[:, 4:], torch.tensor([6]), 1.0).logprobs

    def broken(empty: bool) -> Policy:
        raise InputError("no such model")

    try:
        distributed.sharded(broken, mesh)
        told = ""
    except InputError as error:
        told = str(error)
    ends = network.model.generation_config.eos_token_id
    torch.save(
        {"calls": calls, "most": most, "whole": whole, "logprobs": logprobs, "told": told, "ends": ends},
        folder / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


def test_rank_zero_alone_loads_and_the_others_hold_pieces_and_a_layer(tmp_path: Path) -> None:
    mp.spawn(on_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first["calls"] == [False, True] and second["calls"] == [True]
    assert first["told"] == second["told"] == "no such model"
    policy = Policy(load_causal_lm(SOURCE, load_tokenizer(SOURCE)))
    real = dict(policy.model.named_parameters())
    for rank in (first, second):
        assert equal(rank["whole"], real)
        assert rank["ends"] == policy.model.generation_config.eos_token_id  # type: ignore[union-attr]
    total = sum(p.numel() for p in real.values())
    layers = policy.model.base_model.layers
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert second["most"] <= total / 2 + largest < total
    ids = torch.arange(2, 12)[None, :]
    expected = policy(ids[:, :4], torch.tensor([4]), ids[:, 4:], torch.tensor([6]), 1.0).logprobs
    torch.testing.assert_close(second["logprobs"], expected)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two iterations of a single process."""
    return launch(tmp_path_factory.mktemp("one"), "--max_epochs=2")


@pytest.mark.slow
def test_offloading_changes_nothing_and_resumes(one: Run, tmp_path: Path) -> None:
    flags = ("--strategy=fsdp", "--devices=2", "--model.memory.cpu_offload=true")
    start = launch(tmp_path / "start", *flags, "--max_epochs=1")
    checkpoint = start.folder / "checkpoints" / "last.ckpt"
    end = launch(tmp_path / "end", *flags, "--max_epochs=2", f"--ckpt_path={checkpoint}")
    assert equal(*end.ranks) and difference(one.ranks[0], end.ranks[0]) <= 1e-5


def test_offloading_without_sharding_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"sppo: model\.memory\.cpu_offload needs --strategy fsdp"):
        launch(tmp_path, "--model.memory.cpu_offload=true")
