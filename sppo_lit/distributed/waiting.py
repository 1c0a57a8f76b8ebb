"""Waiting for ranks that work for different times, outside collectives, whose timeout would end the run."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from datetime import timedelta

import torch.distributed as dist

BEAT = 2.0
"""Seconds between two signs of life of a rank."""

LOST = 120.0
"""Seconds without a sign of life after which a rank is taken for dead."""


class Rendezvous:
    """A barrier through the process group's key-value store: as patient as the slowest rank, but not with a dead one.

    Every rank's thread counts up a key of the store as long as its process lives. A rank that waits looks at the keys
    of those that have not arrived. All ranks create theirs in the same order; does nothing in a single process.
    """

    _made = itertools.count()

    def __init__(self) -> None:
        self._rounds = 0
        self._store: dist.Store | None = None
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._store = dist.PrefixStore(f"rendezvous/{next(self._made)}", dist.distributed_c10d._get_default_store())
        ended = threading.Event()
        weakref.finalize(self, ended.set)
        threading.Thread(target=_beat, args=(self._store, self._rank, ended), daemon=True).start()

    def wait(self) -> None:
        """Return when all ranks have called this equally often.

        Raises:
            ConnectionError: a rank is dead.
        """
        store = self._store
        if store is None:
            return
        self._rounds += 1
        this, before = f"all/{self._rounds}", f"all/{self._rounds - 1}"
        store.add(f"arrived/{self._rank}", 1)
        if store.add("arrivals", 1) == self._rounds * self._world:
            store.set(this, "")
        seen: dict[int, tuple[int, float]] = {}  # rank -> its count, and since when
        while True:
            try:
                store.wait([this], timedelta(seconds=BEAT))
                break
            except (dist.DistStoreError, dist.DistNetworkError) as error:
                if isinstance(error, dist.DistNetworkError):
                    raise ConnectionError("rank 0, which keeps the store of the process group, is lost") from error
            self._look(store, seen)
        if self._rank == 0 and self._rounds > 1:
            store.delete_key(before)  # all have left the round before

    def _look(self, store: dist.Store, seen: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for rank in range(self._world):
            if store.add(f"arrived/{rank}", 0) >= self._rounds:
                continue
            count = store.add(f"beat/{rank}", 0)
            if rank not in seen or seen[rank][0] != count:
                seen[rank] = (count, now)
            elif now - seen[rank][1] > LOST:
                raise ConnectionError(f"rank {rank} has given no sign of life for {LOST:.0f} s; it is taken for dead")


def _beat(store: dist.Store, rank: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        try:
            store.add(f"beat/{rank}", 1)
        except RuntimeError:  # the store is gone, and the run with it
            return
