"""Token budget of a forward pass, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches

KEY = "token_budget"
"""Key of the budget's state in a checkpoint."""


class TokenBudget:
    """Maximum tokens, padding included, of one forward pass; halved for the rest of the run when memory runs out.

    Policy, critic and the passes without gradient share one budget, that of one device.

    Args:
        tokens: `model.memory.micro_batch_tokens`.

    Attributes:
        tokens: current budget of one forward pass.
        out_of_memory: how often memory ran out in this iteration.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.out_of_memory = tokens, 0
        self._configured = tokens

    def cut(self, rows: Tensor, lengths: Tensor) -> list[Tensor]:
        """Cut rows into micro-batches.

        Args:
            rows: [N] int64.
            lengths: [B] int64 on the CPU, tokens of every row of the batch.

        Returns:
            Index tensors, together a permutation of `rows`.
        """
        return [rows[piece] for piece in micro_batches(lengths[rows], self.tokens)]

    def recut(self, pieces: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
        """Cut again micro-batches that were cut for a larger budget."""
        return self.cut(torch.cat(list(pieces)), lengths) if pieces else []

    def halve(self) -> None:
        """Halve the budget after memory ran out."""
        self.out_of_memory += 1
        self.tokens = max(1, self.tokens // 2)

    def end_iteration(self) -> dict[str, float]:
        """Start the next iteration; returns the metrics of this one."""
        metrics = {"update/micro_batch_tokens": float(self.tokens), "update/out_of_memory": float(self.out_of_memory)}
        self.out_of_memory = 0
        return metrics

    def save_to(self, checkpoint: dict[str, Any]) -> None:
        """Save the budget, so that a resumed run does not run out of memory again."""
        checkpoint[KEY] = {"configured": self._configured, "tokens": self.tokens}

    def load_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the budget of the resumed run, unless the setting has changed since."""
        state = checkpoint.get(KEY)  # older checkpoints do not have it
        if state and state["configured"] == self._configured:
            self.tokens = state["tokens"]
