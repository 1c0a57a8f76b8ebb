"""Rollout engines whose distribution is not the trainer's, on purpose: for the study of the correction.

    lightning run recipes/quickstart.yaml --model.rollout.engine benchmarks/mismatched_engines.py:bfloat16 \
        --model.ppo.old_logprobs recompute [--model.correction.enabled false]

`bfloat16` samples from weights rounded to bfloat16, `stale` from the weights of one iteration before. Greedy responses,
that is, evaluations, are those of the trainer's weights, so that only training differs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sppo_lit.rollout.torch_engine import TorchEngine, whole_copy
from sppo_lit.types import Completion, Sampling


class Mismatched:
    """Samples with a copy whose weights may lag, and answers greedily with another that is up to date."""

    deterministic = True
    shares_weights = False
    exact = False

    def __init__(self, dtype: torch.dtype, lag: int, *engine: Any) -> None:
        self.exactly, self.sampler = _copy(*engine), _copy(*engine)
        self.sampler.model.to(dtype)
        self.history: deque[list[tuple[str, Tensor]]] = deque(maxlen=lag + 1)
        self.synced = 0

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.history.append([(name, tensor.clone()) for name, tensor in named_tensors])
        self.exactly.sync_weights(self.history[-1])
        self.sampler.sync_weights(self.history[0])
        self.synced += 1

    def generate(self, prompts: Any, sampling: Sampling, **options: Any) -> list[Completion]:
        if sampling.greedy:
            return self.exactly.generate(prompts, sampling, **options)
        version = self.synced - len(self.history)  # the weights at the start are version 0
        return [replace(c, version=version) for c in self.sampler.generate(prompts, sampling, **options)]

    def sleep(self) -> None:
        pass

    wake = close = sleep


def _copy(settings: Any, model: Any, ends: Any, pad: int, device: Any, sharded: bool) -> TorchEngine:
    return TorchEngine(whole_copy(model, device), ends, pad, settings.max_concurrent, shares_weights=False)


def bfloat16(*engine: Any) -> Mismatched:
    return Mismatched(torch.bfloat16, 0, *engine)


def stale(*engine: Any) -> Mismatched:
    return Mismatched(torch.float32, 1, *engine)
