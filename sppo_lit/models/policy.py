"""The policy: token log-probabilities of sampled responses, without a [B, T, vocabulary] tensor in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.models.lora import without_adapters

LOGITS_PER_CHUNK = 2**24
"""Logits held at once (64 MiB in float32): 110 tokens of a 152,000-token vocabulary, 600,000 of a 28-token one."""

LOGIT_COPIES = 6
"""Float32 tensors of a chunk's size alive at once: logits, divided, normalised, two of the entropy, one gradient."""

SHARE_OF_CHUNK = 32
"""On a GPU a chunk takes this part of its memory: 2.5 of 80 GiB, 735 tokens of a 152,000-token vocabulary."""


def logits_per_chunk(gpu_memory: int | None) -> int:
    """Logits held at once: `LOGITS_PER_CHUNK`, which suits a CPU's caches, or what a GPU has room for.

    The size of the GPU decides, not what is free, so that equal runs cut equal chunks.

    Args:
        gpu_memory: bytes of the GPU; None on other devices.
    """
    return max(LOGITS_PER_CHUNK, (gpu_memory or 0) // (SHARE_OF_CHUNK * LOGIT_COPIES * 4))


class TokenTerms(NamedTuple):
    """Log-probability and entropy of sampled tokens, both [B, T] float32, zero on padding.

    Attributes:
        logprobs: log π(token | prompt, earlier tokens) at the sampling temperature, with gradient.
        entropy: entropy of the token's distribution in nats, with gradient only with `entropy_gradient`.
    """

    logprobs: Tensor
    entropy: Tensor


def join_rows(prompt_ids: Tensor, prompt_lengths: Tensor, response_ids: Tensor, response_lengths: Tensor) -> Tensor:
    """Concatenate each prompt and its response, padded on the right.

    With right padding a causal model needs neither an attention mask nor position ids: no real token sees a pad.

    Args:
        prompt_ids: [B, P] int64, padded on the right.
        prompt_lengths: [B] int64.
        response_ids: [B, T] int64, padded on the right.
        response_lengths: [B] int64.

    Returns:
        [B, L] int64, L the longest joined row; padding is 0, a valid id that has no effect.
    """
    total = prompt_lengths + response_lengths
    column = torch.arange(int(total.max()), device=prompt_ids.device)[None, :]
    in_response = column - prompt_lengths[:, None]
    prompt = prompt_ids.gather(1, column.clamp(max=prompt_ids.shape[1] - 1).expand(len(total), -1))
    response = response_ids.gather(1, in_response.clamp(0, response_ids.shape[1] - 1))
    joined = torch.where(in_response < 0, prompt, response)
    return torch.where(column < total[:, None], joined, 0)


def one_token(device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of one dummy token: ids [B, P] and lengths [B], int64, with B = P = 1."""
    return torch.zeros((1, 1), dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)


class _ConvertedLinear(torch.autograd.Function):
    """A linear layer whose weight was converted beforehand: what autocast computes, in both directions, bit for bit.

    The gradient goes to the weight itself, in its own dtype, where the chunks of a pass are summed.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, converted: Tensor, states: Tensor) -> Tensor:
        ctx.dtypes = weight.dtype, states.dtype
        states = states.to(converted.dtype)
        ctx.save_for_backward(converted, states)
        return nn.functional.linear(states, converted)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor]:  # type: ignore[override]
        converted, states = ctx.saved_tensors
        of_weight, of_states = ctx.dtypes
        own = (gradient.T @ states).to(of_weight) if ctx.needs_input_grad[0] else None
        return own, None, (gradient @ converted).to(of_states)


def _head_of(model: PreTrainedModel, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The output layer, [N, D] states to [N, vocabulary] logits, converted to autocast's dtype once."""
    layer = model.get_output_embeddings()
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    plain = type(layer) is nn.Linear and layer.bias is None
    if dtype is None or not plain or layer.weight.dtype != torch.float32:
        return layer
    return partial(_ConvertedLinear.apply, layer.weight, layer.weight.detach().to(dtype))


class Policy(nn.Module):
    """A causal language model as a policy over responses.

    Args:
        model: any transformers causal LM whose logits are `lm_head(base_model(ids))`; checked at construction if it
            has weights.
        entropy_gradient: whether the entropy of `TokenTerms` carries a gradient, for an entropy bonus.

    Attributes:
        logits_per_chunk: logits held at once; None for what suits the device.

    Raises:
        InputError: the architecture transforms its logits (soft-capping, scaling), or attends to later tokens.
    """

    def __init__(self, model: PreTrainedModel, entropy_gradient: bool = False) -> None:
        super().__init__()
        self.model = model
        self.entropy_gradient = entropy_gradient
        self.logits_per_chunk: int | None = None
        if model.device.type != "meta":
            self._check_head()

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        response_ids: Tensor,
        response_lengths: Tensor,
        temperature: float,
    ) -> TokenTerms:
        """Log-probability and entropy of every response token.

        Args:
            prompt_ids: [B, P] int64, padded on the right.
            prompt_lengths: [B] int64.
            response_ids: [B, T] int64, padded on the right.
            response_lengths: [B] int64.
            temperature: divides the logits, as it did while sampling.
        """
        rows = join_rows(prompt_ids, prompt_lengths, response_ids, response_lengths)
        hidden = self.model.base_model(input_ids=rows, use_cache=False).last_hidden_state
        mask = torch.arange(response_ids.shape[1], device=rows.device)[None, :] < response_lengths[:, None]
        row, step = mask.nonzero(as_tuple=True)
        read = hidden[row, prompt_lengths[row] - 1 + step]  # the state before a token predicts it
        logprobs, entropy = self._in_chunks(read, response_ids[row, step], temperature)
        empty = torch.zeros(mask.shape, dtype=logprobs.dtype, device=rows.device)
        return TokenTerms(empty.index_put((row, step), logprobs), empty.index_put((row, step), entropy))

    def empty_pass(self, device: torch.device) -> Tensor:
        """A forward pass over one dummy token: the scalar 0, with a graph."""
        return self(*one_token(device), *one_token(device), 1.0).logprobs.sum() * 0.0

    def without_adapters(self) -> AbstractContextManager[None]:
        """Disable the adapters, if any, inside a block that must not need gradients."""
        return without_adapters(self.model)

    def _in_chunks(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """[N, D] states and [N] ids to [N] log-probabilities and entropies; recomputes logits in the backward pass."""
        head = _head_of(self.model, hidden.device)
        at_once = self.logits_per_chunk
        if at_once is None:
            on_gpu = hidden.device.type == "cuda"
            at_once = logits_per_chunk(torch.cuda.mem_get_info(hidden.device)[1] if on_gpu else None)
        size = max(1, at_once // self.model.get_output_embeddings().weight.shape[0])
        pieces = []
        for states, ids in zip(hidden.split(size), targets.split(size), strict=True):
            if len(targets) > size and torch.is_grad_enabled():
                pieces.append(checkpoint(self._terms, head, states, ids, temperature, use_reentrant=False))
            else:
                pieces.append(self._terms(head, states, ids, temperature))
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _terms(
        self, head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        normalised = logits.log_softmax(dim=-1)
        with torch.set_grad_enabled(self.entropy_gradient and torch.is_grad_enabled()):
            entropy = -(normalised.exp() * normalised).sum(dim=-1)
        return normalised.gather(1, targets[:, None]).squeeze(1), entropy

    @torch.no_grad()
    def _check_head(self) -> None:
        """Check that fake logits of the output layer leave the model unchanged, and that later tokens are not read."""
        training = [module for module in self.model.modules() if module.training]
        layer = self.model.get_output_embeddings()
        self.model.eval()
        ids = torch.arange(1, 4, device=self.model.device)[None, :]
        states: list[Tensor] = []

        def fake_logits(layer: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
            states.append(inputs[0])
            return torch.linspace(-100, 100, logits.numel(), dtype=logits.dtype, device=logits.device).view_as(logits)

        with layer.register_forward_hook(fake_logits):
            whole = self.model(input_ids=ids, use_cache=False).logits
        ids[0, -1] = 0
        ours = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for module in training:
            module.training = True
        gap, scale = (states[0] - ours)[:, :-1].abs().max(), ours.abs().max()
        if not torch.equal(whole, fake_logits(layer, (ours,), whole)) or gap > 1e-4 * scale:
            raise InputError(
                f"{type(self.model).__name__}: its logits are not its output layer applied to states of earlier tokens "
                "(soft-capping, scaling, a larger head or bidirectional attention), which is not supported: choose "
                "another model in model.policy.path"
            )
