"""Peak host memory of a checkpoint in distributed form, against a rank's own share of the state.

    python benchmarks/bench_checkpoint.py                 # 300M parameters, two CPU processes

Each of two ranks (gloo) holds its shards of a random Qwen2 and of its AdamW state in float32. The peak of resident
memory while a checkpoint is written, less what was resident before, is divided by the bytes of these shards: written in
the background (from a copy), directly, and on request gathered to one file on rank zero.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2Config, Qwen2ForCausalLM

from sppo_lit.distributed.checkpoints import ShardWriter
from sppo_lit.distributed.sharding import sharded, whole_value
from sppo_lit.models.policy import Policy
from sppo_lit.utils.files import replace
from sppo_lit.utils.peak_memory import MIB, STATUS, peak_mib, reset_peak

CPU = torch.device("cpu")
LARGEST = 1.3
"""Most that a rank may need for a checkpoint in distributed form, as a multiple of its share."""


def baseline_mib() -> float:
    """Resident memory of this process, without what the allocator only holds; the peak is reset."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak(CPU)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / MIB


def network(layers: int) -> Qwen2ForCausalLM:
    """A random Qwen2 of 16M + 15.7M × layers parameters."""
    config = Qwen2Config(
        vocab_size=16_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def local(value: Any) -> torch.Tensor:
    """This rank's part of a tensor."""
    part: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def on_rank(rank: int, port: int, folder: str, layers: int, one_file: bool) -> None:
    """Write the checkpoint in each way, and print what it took."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)

    def make(empty: bool) -> Policy:
        with torch.device("meta" if empty else "cpu"):
            return Policy(network(layers))

    policy = sharded(make, init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    states = [policy.state_dict(keep_vars=True), *optimizer.state_dict()["state"].values()]
    unique = {id(value): local(value) for state in states for value in state.values() if torch.is_tensor(value)}
    share = sum(value.numel() * value.element_size() for value in unique.values()) / MIB
    if rank == 0:
        print(f"{sum(p.numel() for p in policy.parameters()) / 1e6:.0f}M parameters, a rank's share {share:.0f} MiB")

    def checkpoint() -> dict[str, Any]:
        return {"state_dict": policy.state_dict(keep_vars=True), "optimizer_states": [optimizer.state_dict()]}

    ratios = []
    for name, background in (("in the background", True), ("directly", False)):
        target = Path(folder) / name
        writer = ShardWriter(background)
        before, start = baseline_mib(), time.perf_counter()
        temporary = target.with_name(f".{name}")
        writer.save(checkpoint(), temporary, partial(replace, temporary, target))
        blocked = time.perf_counter() - start
        writer.wait()
        ratios.append((peak_mib(CPU) - before) / share)
        seconds = time.perf_counter() - start
        print(
            f"rank {rank}, {name}: peak {ratios[-1]:.2f} × its share; {blocked:.1f} s blocked, {seconds:.1f} s in all",
            flush=True,
        )
        dist.barrier()
    if one_file:
        gather(rank, policy, optimizer, share, Path(folder) / "whole")
    dist.barrier()
    if max(ratios) > LARGEST:
        print(f"rank {rank}: more than {LARGEST} × its share", flush=True)
        os._exit(1)
    dist.destroy_process_group()


def gather(rank: int, policy: Policy, optimizer: torch.optim.Optimizer, share: float, file: Path) -> None:
    """The same for one file."""
    before = baseline_mib()
    whole = {name: whole_value(value) for name, value in policy.state_dict().items()}
    moments = [
        {name: whole_value(value) for name, value in s.items()} for s in optimizer.state_dict()["state"].values()
    ]
    if rank == 0:
        torch.save([whole, moments], file)
    print(f"rank {rank}, gathered for one file: peak {(peak_mib(CPU) - before) / share:.2f} × its share", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a rank needed too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18, help="of the random model (default 18: 300M parameters)")
    parser.add_argument("--one-file", action="store_true", help="also gather everything on rank zero, for comparison")
    options = parser.parse_args(arguments)
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        try:
            mp.spawn(on_rank, (port, folder, options.layers, options.one_file), nprocs=2)
        except Exception as error:  # a rank's own output says why
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
