"""Peak memory of a stretch of code: of the device where it is a GPU, of the process where it is a Linux CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

MIB = 2**20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What to write into `CLEAR_REFS` (proc(5)); containers may forbid it."""


def reset_peak(device: torch.device) -> bool:
    """Begin a stretch: forget the peak so far; False where that cannot be done, and `peak_mib` means nothing."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_mib(device: torch.device) -> float:
    """Peak since `reset_peak`, in MiB.

    On a GPU what PyTorch allocated there, on a CPU the resident memory of this process (Linux only), which counts
    everything it holds, also what it does not need at the moment.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii", errors="replace"))
    return int(found[1]) * 1024 / MIB if found else 0.0
