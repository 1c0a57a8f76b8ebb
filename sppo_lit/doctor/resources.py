"""Memory and disk: what a run needs against what there is."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from sppo_lit.doctor.memory import Need, Plan, peak
from sppo_lit.doctor.report import Check, size


def memory_check(estimate: Sequence[Need], plan: Plan, processes: int, there: int, kind: str) -> Check:
    """Estimated need of some processes against the memory they share.

    Args:
        estimate: what a process holds.
        plan: what was asked for.
        processes: that share the memory.
        there: bytes.
        kind: what memory it is.
    """
    share = there // processes
    sampling, updating = sum(n.sampling for n in estimate), sum(n.updating for n in estimate)
    advice = []
    if sampling > share:
        most = most_concurrent(estimate, plan.concurrent, share)
        advice.append(
            f"model.rollout.max_concurrent: {most} at most" if most else "lower model.sampling.max_new_tokens"
        )
    if updating > share:
        longest = plan.prompt_tokens + plan.response_tokens
        if plan.micro_batch_tokens > longest:
            advice.append(f"lower model.memory.micro_batch_tokens (not below {longest})")
        if not plan.gradient_checkpointing:
            advice.append("model.memory.gradient_checkpointing: true")
        if plan.weights == torch.float32:
            advice.append("--precision bf16-true")
        advice.append("more devices" if plan.sharded else "--strategy fsdp on several devices")
    shared = f" for {processes} processes" if processes > 1 else ""
    found = f"needs about {size(peak(list(estimate)) * processes)}{shared} at worst, there are {size(there)} of {kind}"
    return Check("memory", max(sampling, updating) <= share, found, "; ".join(advice))


def most_concurrent(estimate: Sequence[Need], concurrent: int, there: int) -> int:
    """How many of the longest sequences a process can decode at once in so many bytes, if `concurrent` do not fit."""
    moving = sum(n.sampling for n in estimate if not n.updating)
    fixed = sum(n.sampling for n in estimate) - moving
    return max(0, min(concurrent, (there - fixed) * concurrent // max(moving, 1)))


def disk_check(needed: int, free: int, folder: object) -> Check:
    """Room for the checkpoints that a run has at once and the exported models."""
    return Check(
        "disk",
        needed <= free,
        f"checkpoints and exports need about {size(needed)}, {size(free)} are free for {folder}",
        "free some space or choose another folder with --trainer.default_root_dir",
    )


def memory_there(cuda: bool) -> tuple[int, str]:
    """Free bytes of the first GPU, or available ones of RAM, and what it is."""
    if cuda:
        return torch.cuda.mem_get_info(0)[0], f"free memory of the {torch.cuda.get_device_name(0)}"
    return psutil.virtual_memory().available, "available RAM"
