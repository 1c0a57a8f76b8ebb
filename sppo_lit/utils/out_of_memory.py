"""Accelerator memory: how much is free, and whether an error says that it ran out."""

from __future__ import annotations

import torch

SIGNS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""Texts of errors of libraries that allocate memory past torch's allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that accelerator memory ran out, be it torch's own or a library's."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


def free_device_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated, what torch's allocator holds in reserve included; None except on CUDA."""
    if device.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def release_reserve() -> None:
    """Give back what torch's allocator holds in reserve, so that differently sized pieces fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
