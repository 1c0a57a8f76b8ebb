"""One of two ranks that write one checkpoint after another until they are killed: ``FOLDER PORT RANK``."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sppo_lit.distributed.checkpoints import ShardWriter, publish, whole_checkpoint
from sppo_lit.utils.files import remove

if __name__ == "__main__":
    folder, port, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh, writer, temporary = init_device_mesh("cpu", (2,)), ShardWriter(), folder / ".saving.tmp"
    done = whole_checkpoint(folder / "last.ckpt")["epoch"] if (folder / "last.ckpt").exists() else 0
    for iteration in range(done + 1, 1_000_000):
        weights = {f"w{i}": distribute_tensor(torch.full((1000, 1000), iteration), mesh, [Shard(0)]) for i in range(4)}
        writer.wait()
        if rank == 0:
            remove(temporary)
        dist.barrier()
        writer.save(
            {"state_dict": weights, "epoch": iteration},
            temporary,
            partial(publish, temporary, folder, ["last"], iteration),
        )
        (folder / f"at{rank}").touch()
        time.sleep(0.01)
