"""Cores of the processor."""

from __future__ import annotations

import os
from pathlib import Path

SPINS = "1000"
"""How often GNU OpenMP's threads look for work before they sleep; its own default is 300,000."""


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Let OpenMP's idle threads give way to other programs; to be called before torch is imported.

    By default they wait in a loop for milliseconds before they sleep. Where another program has a core, the thread that
    they wait for does not run meanwhile, and a run of a small model takes many times longer. Waiting for less costs
    about a tenth alone. What the environment says of it stays.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def multiplies_bfloat16() -> bool:
    """Whether they have instructions for products of bfloat16 matrices (AMX, AVX512-BF16); False where unknown."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16"})
