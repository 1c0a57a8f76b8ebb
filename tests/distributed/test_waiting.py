"""Two processes that wait for each other through the store of their process group."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from sppo_lit.distributed import waiting


def _on_rank(rank: int, folder: Path, port: int, dies: bool) -> None:
    waiting.BEAT, waiting.LOST = 0.1, 1.0
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=0.5))
    rendezvous, told = waiting.Rendezvous(), ""
    rendezvous.wait()
    if rank == 1:
        time.sleep(2.5)  # longer than a collective may take, and than a dead rank is waited for
        if dies:
            os._exit(0)
    start = time.monotonic()
    try:
        rendezvous.wait()
    except ConnectionError as error:
        told = str(error)
    (folder / f"rank{rank}").write_text(f"{time.monotonic() - start} {told}")
    os._exit(0)  # the other rank's end may come first


@pytest.mark.parametrize("dies", [False, True])
def test_a_slow_rank_is_waited_for_and_a_dead_one_found(tmp_path: Path, dies: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_on_rank, (tmp_path, port, dies), nprocs=2)
    seconds, told = (tmp_path / "rank0").read_text().split(" ", 1)
    assert 2 < float(seconds) < 30
    assert ("rank 1 has given no sign of life" in told) == dies
