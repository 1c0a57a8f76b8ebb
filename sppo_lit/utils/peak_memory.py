"""Peak memory of a section of code: allocated on a GPU, or resident in the process on a Linux CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

MIB = 2**20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Value written to `CLEAR_REFS` to reset the peak (proc(5)); containers may forbid it."""


def reset_peak(device: torch.device) -> bool:
    """Reset the peak.

    Args:
        device: device of the code to be measured.

    Returns:
        Whether it could be reset; if not, `peak_mib` is meaningless.
    """
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

    On a GPU the memory that PyTorch has allocated, on a CPU the resident memory of this process (Linux only), which
    includes memory that is held but not in use.

    Args:
        device: device of the measured code.

    Raises:
        OSError: a CPU on a system other than Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    match = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii", errors="replace"))
    return int(match[1]) * 1024 / MIB if match else 0.0
