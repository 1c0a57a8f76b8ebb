"""Settings of CUDA for the whole process, made before anything is allocated."""

from __future__ import annotations

import os

import torch

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables with which users set PyTorch's allocator themselves."""


def prepare_cuda() -> None:
    """Choose PyTorch's allocator and attention kernels for runs of this kind; no-op without a GPU.

    Sequences of all lengths leave holes that segments of fixed size cannot fill: they become expandable, unless the
    environment says how to allocate. (Set here and not in the environment, which libraries that manage memory of their
    own read.) And cuDNN's attention, which PyTorch prefers on Hopper, plans anew for every shape, of which a growing
    cache has hundreds: flash attention takes over.
    """
    if not torch.cuda.is_available():
        return
    if not any(os.environ.get(name) for name in ALLOCATOR):
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    torch.backends.cuda.enable_cudnn_sdp(False)
