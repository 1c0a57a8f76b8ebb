"""What results were made with: version and commit of this package, and the machine."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import psutil
import torch

from sppo_lit import __version__
from sppo_lit.utils.cores import usable_cores
from sppo_lit.utils.paths import PACKAGE

CPU_INFO = Path("/proc/cpuinfo")


def made_with() -> str:
    """Version, commit, Python, torch and the machine in one line, without its name or paths."""
    commit = git_commit(PACKAGE.parent)
    version = f"sppo-lit {__version__}" + (f" (commit {commit})" if commit else "")
    return f"{version}, Python {platform.python_version()}, torch {torch.__version__} on {machine()}"


def git_commit(folder: Path) -> str:
    """Short hash of the commit that is checked out, with "and changes" if files differ; "" if it is not a clone."""
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().replace("-dirty", " and changes") if done.returncode == 0 else ""


def machine() -> str:
    """GPUs, processor, cores that this process may use, and memory."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    parts = [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
    cores = usable_cores()
    parts += [processor(), f"{cores} core{'s' if cores > 1 else ''}"]
    return ", ".join([*parts, f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"])


def processor() -> str:
    """Name of the processor's model."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", CPU_INFO.read_text(encoding="utf-8", errors="replace"), re.M)
    except OSError:
        named = None
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()
