"""From problems to a batch of rollouts: sample, judge, value, advantage (paper, section 3).

Everything here is taken from the weights before any update of the iteration. What differs between algorithms is a row
of `algorithms.specs.ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from sppo_lit.algorithms.advantages import Outcomes, equal_groups, gae, whiten
from sppo_lit.algorithms.batching import micro_batches, pad_rows
from sppo_lit.algorithms.losses import kl_penalty
from sppo_lit.algorithms.masking import response_mask
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.distributed.collectives import reduced
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.loading import ModelSource, checkpoint_layers, load_causal_lm, load_critic
from sppo_lit.models.policy import Policy
from sppo_lit.settings import KLSettings, OptimizerSettings, RewardSettings
from sppo_lit.training.evaluator import scored_responses
from sppo_lit.training.metrics import GREEDY
from sppo_lit.training.policy_module import Encoded, PolicyModule, check_minibatch
from sppo_lit.types import Completion, RolloutBatch, Sampling, Scored, Verdict


class RolloutModule(PolicyModule):
    """A policy with the critic and the reference policy that its algorithm asks for, and the rollouts to learn from.

    `SPPOModule`, which says how they are learned from, sets the attributes.

    Attributes:
        spec: the algorithm.
        critic_source: where the critic comes from.
        critic_optimizer: its learning rate, schedule and clipping.
        samples: N, responses to each problem.
        gamma: discount per token, of token-level estimators.
        lam: λ of generalised advantage estimation.
        whiten: shift and scale the advantages to mean 0 and variance 1.
        drop_equal_groups: the policy does not learn from problems whose N responses were all paid the same.
        kl: penalty for moving away from a reference policy.
        reward: what the policy is paid.
        policy_only: load nothing but the policy, to evaluate weights that come from no checkpoint.
        bad_values: responses of this iteration, over all ranks, with a V that is not finite.
    """

    policy_only = False
    spec: AlgorithmSpec
    critic_source: ModelSource
    critic_optimizer: OptimizerSettings
    gamma: float
    lam: float
    whiten: bool
    drop_equal_groups: bool
    kl: KLSettings
    reward: RewardSettings
    bad_values = 0

    def configure_model(self) -> None:
        """Load the policy and, but for `policy_only`, critic and reference policy."""
        super().configure_model()
        if self.policy_only:
            return
        if self.spec.critic != "none" and self.critic is None:
            self.critic = self.place(self._new_critic)
        if self.kl.coef and not self.starts_as_reference and not hasattr(self, "_reference"):
            self._reference = [self.place(self._new_reference)]  # in a list, so that checkpoints leave it out

    def _new_critic(self, empty: bool) -> ScalarCritic | TokenCritic:
        wrap: Any = {"scalar": ScalarCritic, "token": TokenCritic}[self.spec.critic]
        kind = cast(Literal["scalar", "token"], self.spec.critic)
        model = load_critic(self.critic_source, self.tokenizer, kind, empty)
        if self.gradient_checkpointing:
            checkpoint_layers(model)
        return wrap(model)

    def _new_reference(self, empty: bool) -> Policy:
        source = self.kl.reference or self.policy_source
        return Policy(load_causal_lm(source, self.tokenizer, empty)).requires_grad_(False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the policy, and another for the critic if there is one."""
        policy = self.adamw(self.policy, self.policy_optimizer)
        return [policy] if self.critic is None else [policy, self.adamw(self.critic, self.critic_optimizer)]

    # --------------------------------------------------------------------------------------------------------- rollout

    def collect(self, encoded: Sequence[Encoded]) -> RolloutBatch:
        """One iteration's rollouts from the current policy: sampled, judged, valued, with advantages.

        Args:
            encoded: this rank's problems with their prompt ids.

        Returns:
            problems × samples sequences on this module's device, those of one problem next to each other.
        """
        n = self.samples
        check_minibatch(len(encoded) * self.trainer.world_size, self, self.trainer.world_size)  # before sampling
        problems, encoded = encoded, [entry for entry in encoded for _ in range(n)]
        samples = list(range(n)) * len(problems)
        stage = f"train/{self.iteration}"
        with self.interruptible(boundary=True):
            with self.timed("rollout"):
                completions = self.sample(encoded, self.sampling, stage, samples, "sampling")
                greedy = self._greedy(problems, stage) if self.spec.greedy else []
            with self.timed("verify"):
                texts, verdicts = self.judge(encoded, completions)
                rewards = self._pay(encoded, completions, texts, verdicts)
                baseline = self._pay(problems, greedy, *self.judge(problems, greedy)) if greedy else None
        self.count_sampled([*completions, *greedy])
        labels = torch.tensor([float(v.reward) for v in verdicts], device=self.device)
        batch = self._tensors(encoded, completions, rewards, labels)
        with self.timed("values"):
            batch.values = self.values_of(batch)
            self._distrust_values(batch)
            batch.reference = self.reference_logprobs(batch)
        self._judge_advantage(batch, None if baseline is None else baseline.repeat_interleave(n))
        per_response = batch.advantages
        if per_response.ndim == 2:
            per_response = per_response.sum(dim=1) / batch.response_lengths
        at_prompt = batch.values if batch.values.ndim == 1 else batch.values[:, 0]
        values = at_prompt.tolist() if self.critic is not None else [None] * len(texts)
        batch.scored = scored_responses(encoded, completions, texts, verdicts, samples)
        for scored, value, advantage in zip(batch.scored, values, per_response.tolist(), strict=True):
            scored.value, scored.advantage = value, advantage
        return batch

    def _greedy(self, problems: Sequence[Encoded], stage: str) -> list[Completion]:
        """The most likely response to each problem (the baseline of ReMax)."""
        greedy = Sampling(temperature=0.0, max_new_tokens=self.sampling.max_new_tokens)
        return self.sample(problems, greedy, stage, [GREEDY] * len(problems), "greedy baseline")

    def _pay(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], texts: list[str], verdicts: list[Verdict]
    ) -> Tensor:
        """The policy's reward of every response, [B] float32."""
        weights = self.reward.custom
        values = self.verifier.custom(texts, [p.answer for p, _ in encoded])
        extra = [sum(w * values[name][i] for name, w in weights.items()) for i in range(len(texts))]
        overlong = self.reward.penalties([len(c.response_ids) for c in completions], self.sampling.max_new_tokens)
        paid = [self.reward.correctness * v.reward + e + o for v, e, o in zip(verdicts, extra, overlong, strict=True)]
        return torch.tensor(paid, dtype=torch.float32, device=self.device)

    def _tensors(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], rewards: Tensor, labels: Tensor
    ) -> RolloutBatch:
        prompt_ids, prompt_lengths = pad_rows([ids for _, ids in encoded], self.device)
        response_ids, response_lengths = pad_rows([c.response_ids for c in completions], self.device)
        logprobs, _ = pad_rows([c.logprobs for c in completions], self.device, torch.float32)
        return RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_lengths=prompt_lengths,
            response_ids=response_ids,
            response_lengths=response_lengths,
            logprobs=logprobs,
            reference=torch.zeros_like(logprobs),
            rewards=rewards,
            labels=labels,
            values=torch.zeros_like(rewards),
            targets=labels,
            advantages=torch.zeros_like(rewards),
            kept=torch.ones_like(rewards, dtype=torch.bool),
            scored=[],
        )

    def _distrust_values(self, batch: RolloutBatch) -> None:
        """Where V is not finite it becomes 0, and the policy does not learn from the response."""
        bad = ~batch.values.reshape(len(batch), -1).isfinite().all(dim=1)
        batch.values = torch.where(bad.view(-1, *[1] * (batch.values.ndim - 1)), 0.0, batch.values)
        batch.kept &= ~bad
        self.bad_values = int(reduced(bad.sum()))
        if self.bad_values:
            self.say(f"critic: {self.bad_values} values are not finite; the policy does not learn from those responses")

    def _judge_advantage(self, batch: RolloutBatch, greedy: Tensor | None) -> None:
        """Set advantages, the critic's targets, and which responses the policy learns from."""
        mask = response_mask(batch.response_lengths, batch.response_ids.shape[1])
        costs = None
        if self.kl.coef and self.kl.where == "reward":
            costs = self.kl.coef * kl_penalty(batch.logprobs, batch.reference, self.kl.estimator)  # 0 on padding
        lengths = batch.response_lengths
        outcomes = Outcomes(batch.rewards, batch.values, lengths, self.samples, greedy, costs, self.gamma, self.lam)
        batch.advantages = self.spec.advantage(outcomes)
        if self.whiten:
            shape = mask & batch.kept[:, None] if batch.advantages.ndim == 2 else batch.kept
            batch.advantages = whiten(batch.advantages, shape, reduced)
        if self.spec.critic == "token":
            ahead = gae(batch.labels, batch.values, lengths, gamma=self.gamma, lam=self.lam)
            batch.targets = torch.where(mask, ahead + batch.values, 0.0)
        if self.drop_equal_groups:
            batch.kept &= ~equal_groups(outcomes.totals, self.samples)

    # ------------------------------------------------------------------------------------------- critic and reference

    def critic_inputs(self, piece: RolloutBatch) -> tuple[Tensor, ...]:
        """What the critic reads: a scalar one the prompt alone, a token-level one the response too."""
        prompt = (piece.prompt_ids, piece.prompt_lengths)
        return prompt if self.spec.critic == "scalar" else (*prompt, piece.response_ids, piece.response_lengths)

    def critic_lengths(self, batch: RolloutBatch) -> Tensor:
        """Tokens that the critic reads of each sequence, [B] int64, on the CPU."""
        return batch.prompt_lengths.cpu() if self.spec.critic == "scalar" else batch.lengths()

    @torch.no_grad()
    def values_of(self, batch: RolloutBatch) -> Tensor:
        """V before any update: [B] of a scalar critic, [B, T] of a token-level one; [B] zeros without a critic."""
        if self.critic is None:
            return torch.zeros_like(batch.rewards)
        values = torch.zeros_like(batch.rewards if self.spec.critic == "scalar" else batch.logprobs)
        pieces = micro_batches(self.critic_lengths(batch), self.micro_batch_tokens)
        self.join_passes(self.critic, len(pieces))
        with self.trainer.precision_plugin.forward_context():
            for i, rows in enumerate(pieces):
                piece = batch.select(rows)
                found = self.spec.link(self.critic(*self.critic_inputs(piece))).to(values.dtype)
                if found.ndim == 2:
                    found = torch.where(response_mask(piece.response_lengths, found.shape[1]), found, 0.0)
                    values[rows, : found.shape[1]] = found
                else:
                    values[rows] = found
                self.report_phase("values", i + 1, len(pieces))
        return values

    def read_values(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], scored: Sequence[Scored]
    ) -> None:
        """Set V(prompt) of validation's responses, in place; of a token-level critic also V before each token."""
        if not encoded:
            self.join_passes(self.critic, 0)
            return
        labels = torch.tensor([s.verdict.reward for s in scored], device=self.device)
        batch = self._tensors(encoded, completions, labels, labels)
        for s, value in zip(scored, self.values_of(batch).tolist(), strict=True):
            if isinstance(value, list):
                s.value, s.values = value[0], [round(v, 5) for v in value[: s.tokens]]
            else:
                s.value = value

    @torch.no_grad()
    def reference_logprobs(self, batch: RolloutBatch) -> Tensor:
        """[B, T] log-probabilities under the reference policy; zeros if there is none."""
        reference = torch.zeros_like(batch.logprobs)
        if not self.kl.coef:
            return reference
        policy = self.policy
        if not self.starts_as_reference:
            policy = self._reference[0].to(self.policy.model.dtype)
            policy = policy if self.device_mesh is not None else policy.to(self.device)  # pieces are where they belong
        pieces = micro_batches(batch.lengths(), self.micro_batch_tokens)
        with self.trainer.precision_plugin.forward_context(), policy.without_adapters():
            self.read_logprobs(batch, pieces, policy, reference)
        return reference

    def read_logprobs(self, batch: RolloutBatch, pieces: Sequence[Tensor], policy: Policy, into: Tensor) -> None:
        """Write a policy's log-probabilities of the rows in `pieces` ([N] int64 each) to `into` ([B, T])."""
        self.join_passes(policy, len(pieces))
        for rows in pieces:
            logprobs = self.terms_of(batch.select(rows), policy).logprobs
            into[rows, : logprobs.shape[1]] = logprobs.to(into.dtype)

    @property
    def starts_as_reference(self) -> bool:
        """Whether the policy without its adapters is the reference policy."""
        return self.lora is not None and self.kl.reference is None

    def terms_of(self, piece: RolloutBatch, policy: Any = None) -> Any:
        """`TokenTerms` of a piece's responses at the sampling temperature, of the policy or of another one."""
        return (self.policy if policy is None else policy)(
            piece.prompt_ids,
            piece.prompt_lengths,
            piece.response_ids,
            piece.response_lengths,
            self.sampling.temperature,
        )
