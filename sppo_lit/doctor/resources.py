"""Memory and disk: needs of a run against what is available."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from sppo_lit.doctor.memory import Need, Plan, peak
from sppo_lit.doctor.report import Check, size


def memory_check(estimate: Sequence[Need], plan: Plan, processes: int, available: int, kind: str) -> Check:
    """Estimated need of processes against the memory they share.

    Args:
        estimate: memory of one process.
        plan: the sizes of the run.
        processes: number of processes that share the memory.
        available: bytes available.
        kind: name of that memory.
    """
    share = available // processes
    sampling, updating = sum(n.sampling for n in estimate), sum(n.updating for n in estimate)
    advice = []
    if sampling > share:
        most = most_concurrent(estimate, plan.concurrent, share)
        advice.append(f"model.rollout.max_concurrent: at most {most}" if most else "fewer tokens or more devices")
        if plan.offload_while_sampling != "all":
            advice.append("model.memory.offload_while_sampling: all")
    if updating > share:
        longest = plan.prompt_tokens + plan.response_tokens
        if plan.micro_batch_tokens > longest:
            advice.append(f"lower model.memory.micro_batch_tokens (not below {longest})")
        if not plan.gradient_checkpointing:
            advice.append("model.memory.gradient_checkpointing: true")
        advice.append("more devices" if plan.sharded else "--strategy fsdp on several devices")
    shared = f" for {processes} processes" if processes > 1 else ""
    detail = f"needs about {size(peak(list(estimate)) * processes)}{shared} at peak; {kind}: {size(available)}"
    return Check("memory", max(sampling, updating) <= share, detail, "; ".join(advice))


def most_concurrent(estimate: Sequence[Need], concurrent: int, available: int) -> int:
    """How many sequences of the greatest length a process can decode at once in `available` bytes."""
    scaling = sum(n.sampling for n in estimate if n.grows)
    fixed = sum(n.sampling for n in estimate) - scaling
    return max(0, min(concurrent, (available - fixed) * concurrent // max(scaling, 1)))


def disk_check(needed: int, free: int | None, folder: object) -> Check:
    """Disk space for a run's checkpoints and exported models; `free` is None where it is not known."""
    if free is None:
        return Check("disk", True, f"checkpoints and exports need about {size(needed)}")
    return Check(
        "disk",
        needed <= free,
        f"checkpoints and exports need about {size(needed)}, {size(free)} are free for {folder}",
        "free some space or choose another folder with --trainer.default_root_dir",
    )


def available_memory(cuda: bool) -> tuple[int, str]:
    """Free bytes of the first GPU, or available bytes of RAM, and the name of that memory."""
    if cuda:
        return torch.cuda.mem_get_info(0)[0], f"free memory of the {torch.cuda.get_device_name(0)}"
    return psutil.virtual_memory().available, "available RAM"
