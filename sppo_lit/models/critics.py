"""Critics: one number per prompt (Sequence-Level PPO), or one per token (PPO)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sppo_lit.algorithms.masking import response_mask
from sppo_lit.models.policy import join_rows, one_token
from sppo_lit.types import Sequences


class ScalarCritic(nn.Module):
    """Predicts from the prompt alone whether the policy will solve it: V(s_p) = sigmoid(logit).

    Its network is separate and may be far smaller than the policy (paper: a 1.5B critic for a 7B policy).

    Args:
        model: a sequence classifier with one label and a linear head named `score`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def inputs(self, sequences: Sequences) -> tuple[Tensor, ...]:
        """Inputs of `forward`: [B, P] prompt ids and [B] lengths."""
        return sequences.prompt_ids, sequences.prompt_lengths

    def lengths(self, sequences: Sequences) -> Tensor:
        """Input tokens of each sequence, [B] int64 on the CPU."""
        return sequences.prompt_lengths.cpu()

    def mask(self, sequences: Sequences) -> Tensor:
        """Valid outputs, [B] bool: all."""
        return torch.ones_like(sequences.prompt_lengths, dtype=torch.bool)

    def empty_pass(self, device: torch.device) -> Tensor:
        """A forward pass over one dummy token: the scalar 0, with a graph."""
        return self(*one_token(device)).sum() * 0.0

    def forward(self, prompt_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """The logit at the last prompt token, by its length.

        (The classifier's own pooling looks for the last token that is not the pad id, which is wrong if the
        pad id is also a real token.)

        Args:
            prompt_ids: [B, P] int64, padded on the right; never a response token.
            prompt_lengths: [B] int64.

        Returns:
            [B] float32 logits.
        """
        hidden = self.model.base_model(input_ids=prompt_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(prompt_lengths), device=hidden.device), prompt_lengths - 1]
        logits = self.model.get_submodule("score")(last).squeeze(-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class TokenCritic(nn.Module):
    """Predicts the return before each token of a response: V(s_t), s_t = prompt and earlier tokens (PPO).

    Args:
        model: a token classifier with one label and a linear head named `score`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def inputs(self, sequences: Sequences) -> tuple[Tensor, ...]:
        """Inputs of `forward`: [B, P] prompt ids and [B] lengths, [B, T] response ids and [B] lengths."""
        return sequences.tokens

    def lengths(self, sequences: Sequences) -> Tensor:
        """Input tokens of each sequence, [B] int64 on the CPU."""
        return sequences.lengths()

    def mask(self, sequences: Sequences) -> Tensor:
        """Valid outputs, [B, T] bool: those before a response token."""
        return response_mask(sequences.response_lengths, sequences.response_ids.shape[1])

    def empty_pass(self, device: torch.device) -> Tensor:
        """A forward pass over one dummy token: the scalar 0, with a graph."""
        return self(*one_token(device), *one_token(device)).sum() * 0.0

    def forward(
        self, prompt_ids: Tensor, prompt_lengths: Tensor, response_ids: Tensor, response_lengths: Tensor
    ) -> Tensor:
        """The head's output in the state before every response token.

        Args:
            prompt_ids: [B, P] int64, padded on the right.
            prompt_lengths: [B] int64.
            response_ids: [B, T] int64, padded on the right.
            response_lengths: [B] int64.

        Returns:
            [B, T] float32, zeros on padding.
        """
        rows = join_rows(prompt_ids, prompt_lengths, response_ids, response_lengths)
        hidden = self.model.base_model(input_ids=rows, use_cache=False).last_hidden_state
        step = torch.arange(response_ids.shape[1], device=rows.device)[None, :]
        state = (prompt_lengths[:, None] - 1 + step).clamp(max=rows.shape[1] - 1)
        outputs = self.model.get_submodule("score")(hidden).squeeze(-1).gather(1, state)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return torch.where(step < response_lengths[:, None], outputs, 0.0)
