"""Supervised warm-up: the policy imitates worked solutions, so that reinforcement learning has something to improve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches, pad_rows
from sppo_lit.algorithms.masking import masked_sum, response_mask
from sppo_lit.distributed.collectives import reduced
from sppo_lit.errors import InputError
from sppo_lit.models.loading import ModelSource
from sppo_lit.settings import EvalSettings, OptimizerSettings, VerifierSettings
from sppo_lit.training.diagnostics import step_metrics
from sppo_lit.training.policy_module import Encoded, PolicyModule, check_limits
from sppo_lit.types import Sampling


@dataclass
class SolutionBatch:
    """Worked solutions of one iteration, B of them, padded on the right.

    Attributes:
        prompt_ids: [B, P] int64.
        prompt_lengths: [B] int64.
        response_ids: [B, T] int64, each ended by the end-of-sequence token.
        response_lengths: [B] int64.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    response_ids: Tensor
    response_lengths: Tensor

    def contents(self, rows: Tensor) -> dict[str, Tensor]:
        """Some sequences ([N] int64), to be saved for inspection."""
        return {f.name: getattr(self, f.name)[rows].cpu() for f in fields(self)}


class SupervisedModule(PolicyModule):
    """Cross-entropy on the response tokens of worked solutions.

    Args:
        policy: where the policy comes from; `init: random` starts from scratch.
        sampling: only its limits matter, for validation.
        evaluation: how held-out problems are answered.
        minibatch_size: solutions of one optimizer step.
        micro_batch_tokens: most tokens, padding included, of one forward pass.
        policy_optimizer: learning rate, schedule and clipping.
        verifier: worker processes and deadline.
        max_concurrent: most sequences decoded at once.
    """

    def __init__(
        self,
        policy: ModelSource,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        evaluation: EvalSettings = EvalSettings(),  # noqa: B008
        minibatch_size: int = 64,
        micro_batch_tokens: int = 16384,
        policy_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3),  # noqa: B008
        verifier: VerifierSettings = VerifierSettings(),  # noqa: B008
        max_concurrent: int = 256,
    ) -> None:
        check_limits("model", minibatch_size=minibatch_size, micro_batch_tokens=micro_batch_tokens)
        if evaluation.values:
            raise InputError("model.evaluation.values: supervised training has no critic; leave it out")
        super().__init__(policy, sampling, evaluation, policy_optimizer, verifier, micro_batch_tokens, max_concurrent)
        self.minibatch_size = minibatch_size

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the policy."""
        return self.adamw(self.policy, self.policy_optimizer)

    def collect(self, encoded: Sequence[Encoded]) -> SolutionBatch:
        """The iteration's worked solutions as token ids.

        Raises:
            InputError: a problem has no worked solution.
        """
        ends = int(self.tokenizer.eos_token_id)  # type: ignore[arg-type]
        responses = []
        for problem, _ in encoded:
            if problem.solution is None:
                raise InputError(f"{problem.key}: no worked solution to imitate; choose a source that has them")
            ids = self.tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
            responses.append([*ids, ends])
        prompts = [ids for _, ids in encoded]
        return SolutionBatch(*pad_rows(prompts, self.device), *pad_rows(responses, self.device))

    def training_step(self, batch: SolutionBatch, batch_idx: int) -> None:
        """Minibatches × micro-batches over the iteration's solutions."""
        optimizer = self.optimizers()
        lr = self.set_lr(optimizer, self.policy_optimizer)
        lengths = (batch.prompt_lengths + batch.response_lengths).cpu()
        plan = self.minibatches(len(lengths))
        steps: list[dict[str, Tensor]] = []
        with self.timed("update"), self.local_backward():
            for i, rows in enumerate(plan):
                self.leave_if_told(boundary=i == 0)
                tokens = int(reduced(batch.response_lengths[rows].sum()))
                pieces = [rows[piece] for piece in micro_batches(lengths[rows], self.micro_batch_tokens)]
                run = partial(self._passes, batch, tokens)
                loss = reduced(self.accumulate(self.policy, pieces, lambda: lengths, run))
                norm = self.step_or_skip(
                    "policy", optimizer, self.policy_optimizer, loss, partial(batch.contents, rows)
                )
                steps.append({"policy/loss": loss, "policy/grad_norm": norm})
                self.report_phase("updating", i + 1, len(plan))
        self.finish_iteration({**step_metrics(steps), "policy/lr": lr})

    def _passes(self, batch: SolutionBatch, tokens: int, pieces: list[Tensor]) -> Tensor:
        """Forward and backward over micro-batches; this rank's share of the loss."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for rows in pieces:
            loss = self._negative_log_likelihood(batch, rows) / tokens
            self.manual_backward(loss)
            total += loss.detach()
        return total

    def _negative_log_likelihood(self, batch: SolutionBatch, rows: Tensor) -> Tensor:
        lengths = batch.response_lengths[rows]
        responses = batch.response_ids[rows, : int(lengths.max())]
        terms = self.policy(batch.prompt_ids[rows], batch.prompt_lengths[rows], responses, lengths, 1.0)
        return -masked_sum(terms.logprobs, response_mask(lengths, responses.shape[1]))
