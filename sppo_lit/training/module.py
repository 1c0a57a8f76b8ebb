"""Sequence-Level PPO, and the baselines it is compared with, as a LightningModule.

The order of one iteration (paper, section 3): responses are sampled and verified; V and the old log-probabilities are
computed with the weights before any update; advantages follow; then PPO epochs × minibatches × micro-batches, the
critic's step before the policy's. What differs between algorithms is a row of `algorithms.specs.ALGORITHMS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sppo_lit.algorithms.batching import balanced_shares, check_minibatch, shared_minibatches
from sppo_lit.algorithms.losses import importance_weights, kl_penalty
from sppo_lit.algorithms.masking import masked_sum, token_weights
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.algorithms.specs import algorithm as algorithm_named
from sppo_lit.algorithms.tracking import PromptTracker, iteration_kl
from sppo_lit.distributed.collectives import gathered, reduced
from sppo_lit.distributed.rows import own_rows, whole_batch, whole_list
from sppo_lit.distributed.sharding import place
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.models.loading import load_tokenizer
from sppo_lit.models.policy import Policy
from sppo_lit.rewards.verifiers import make_verifier
from sppo_lit.rollout.engines import built_in
from sppo_lit.settings import (
    AdvantageSettings,
    BatchSettings,
    CorrectionSettings,
    EvalSettings,
    KLSettings,
    LoraSettings,
    MemorySettings,
    ModelSource,
    OptimizerSettings,
    PPOSettings,
    RewardSettings,
    RolloutSettings,
    VerifierSettings,
    check_sampling,
)
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.collector import Collector, ReferencePolicy
from sppo_lit.training.diagnostics import (
    CRITIC_TERMS,
    PATIENCE,
    POLICY_TERMS,
    no_reward,
    policy_terms,
    rollout_metrics,
    step_metrics,
)
from sppo_lit.training.evaluator import Evaluator
from sppo_lit.training.metrics import Result, flatten
from sppo_lit.training.networks import make_critic, make_policy, make_reference
from sppo_lit.training.passes import ValueReader, read_logprobs
from sppo_lit.training.protocols import IterationProblems, ProblemPasses, selection_of
from sppo_lit.training.reloading import save_settings, saved_settings
from sppo_lit.training.run_folder import run_folder
from sppo_lit.training.runtime import Runtime, compute_dtype
from sppo_lit.training.sampler import Sampler
from sppo_lit.training.selection import ProblemSelector, check_selection, prompt_keys
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import CRITIC, PhaseTimer, listeners
from sppo_lit.training.trainer_checks import check_trainer, content
from sppo_lit.training.updater import Terms, Updater, adamw, idle_tensors
from sppo_lit.types import Encoded, Intact, Reason, Rollouts, Sampling, Scored, TrainingBatch
from sppo_lit.utils.cuda import prepare_cuda

if TYPE_CHECKING:
    from typing_extensions import Self

MEMORY = "memory_of_prompts"
"""Key of the memory's state in a checkpoint."""


class Minibatch(NamedTuple):
    """This rank's rows of one optimizer step of each network, cut into micro-batches: index tensors, [N] int64 each."""

    critic: list[Tensor]
    policy: list[Tensor]


class SPPOModule(pl.LightningModule):
    """Policy and critic, trained on their own rollouts.

    Args:
        policy: where the policy comes from.
        critic: where the critic comes from; None uses the policy's source. May be far smaller than the policy.
        algorithm: a name in `ALGORITHMS`, or a custom spec as ``path/to/file.py:SPEC`` or ``package.module.SPEC``.
        sampling: how training responses are sampled (paper: temperature 0.6).
        evaluation: how held-out problems are answered.
        batch: how an iteration's problems become optimizer steps.
        ppo: the update: epochs, clip range, aggregation, old log-probabilities.
        advantage: how rewards become advantages.
        kl: penalty on the KL divergence from a reference policy; off by default.
        reward: the policy's reward; the critic's labels are always the verdicts.
        verifier: how answers are verified.
        rollout: the engine that samples the responses.
        correction: of the policy loss, where the engine's log-probabilities are not the trainer's.
        policy_optimizer: learning rate, schedule and clipping of the policy.
        critic_optimizer: the same for the critic.
        memory: limits on the accelerator memory of a training step.
        lora: train adapters of the policy instead of its weights.
        policy_only: load only the policy, to evaluate weights that come from no checkpoint.

    Attributes:
        last_rollouts: rollouts of the latest iteration.

    Raises:
        InputError: unknown algorithm or invalid settings.
    """

    automatic_optimization = False
    iterations_done: Tensor
    policy: Policy

    def __init__(
        self,
        policy: ModelSource,
        critic: ModelSource | None = None,
        algorithm: str = "sppo",
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        evaluation: EvalSettings = EvalSettings(),  # noqa: B008
        batch: BatchSettings = BatchSettings(),  # noqa: B008
        ppo: PPOSettings = PPOSettings(),  # noqa: B008
        advantage: AdvantageSettings = AdvantageSettings(),  # noqa: B008
        kl: KLSettings = KLSettings(),  # noqa: B008
        reward: RewardSettings = RewardSettings(),  # noqa: B008
        verifier: VerifierSettings = VerifierSettings(),  # noqa: B008
        rollout: RolloutSettings = RolloutSettings(),  # noqa: B008
        correction: CorrectionSettings = CorrectionSettings(),  # noqa: B008
        policy_optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=5e-6),  # noqa: B008
        memory: MemorySettings = MemorySettings(),  # noqa: B008
        lora: LoraSettings | None = None,
        policy_only: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        spec = algorithm_named(algorithm)
        samples = spec.samples_per_prompt if batch.samples_per_prompt is None else batch.samples_per_prompt
        check_settings(spec, samples, policy, sampling, evaluation, ppo, advantage, kl)
        reward.check(sampling.max_new_tokens)
        if (engine := built_in(rollout)) is not None:
            check_correction(rollout.engine, engine.exact, ppo, correction)
        self.spec, self.samples = spec, samples
        self.policy_source, self.critic_source = policy, critic or policy
        self.sampling, self.evaluation = sampling, evaluation
        self.batch_settings, self.ppo, self.advantage, self.kl, self.reward = batch, ppo, advantage, kl, reward
        self.rollout, self.correction = rollout, correction
        self.memory, self.lora, self.policy_only = memory, lora, policy_only
        self.policy_optimizer, self.critic_optimizer = policy_optimizer, critic_optimizer
        self.aggregation = ppo.aggregation or spec.aggregation
        self.surrogate = spec.surrogate(ppo)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tokenizer = load_tokenizer(policy)
        self.verifier = make_verifier(verifier, list(reward.custom))
        self.budget = TokenBudget(memory.micro_batch_tokens)
        self.critic: ScalarCritic | TokenCritic | None = None
        self.memory_of_prompts = spec.memory() if spec.memory is not None else None
        self.last_rollouts: Rollouts | None = None
        self.sampler: Sampler | None = None  # until `configure_model`
        self.corrects = False  # until training starts
        self._paid = False  # any response so far, or before a resume
        self._loaded = False  # the networks
        self.register_buffer("iterations_done", torch.zeros((), dtype=torch.int64))

    @property
    def iteration(self) -> int:
        """Iterations completed, saved with the weights; `current_epoch` lags behind it just after a resume."""
        return int(self.iterations_done)

    @property
    def evaluates_all_at_start(self) -> bool:
        """Whether the evaluation before training is of all held-out problems."""
        return self.evaluation.at_start is None

    # ------------------------------------------------------------------------------------------------------- assembly

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any
    ) -> Self:
        """The module of a checkpoint file, with the settings in it but those given here; else as in Lightning."""
        return super().load_from_checkpoint(
            checkpoint_path, *args, **{**saved_settings(cls, checkpoint_path), **kwargs}
        )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse what a trainer cannot do with this module; no callbacks of its own."""
        check_trainer(self.trainer, [self.policy_optimizer, self.critic_optimizer])
        check_selection(selection_of(self.trainer), self.spec)
        return []

    def setup(self, stage: str) -> None:
        """Reject training with `policy_only`."""
        if stage == "fit" and self.policy_only:
            raise InputError("model.policy_only is for 'validate': training needs all networks of the algorithm")

    def configure_model(self) -> None:
        """Load the networks (once; Lightning calls this before every fit, validate and test), and create the parts."""
        prepare_cuda()
        if not self._loaded:
            self._load_networks()
        if self._trainer is None:  # in `load_from_checkpoint`
            return
        self.runtime = Runtime.of(self)
        self.timer = PhaseTimer(self.runtime.device, listeners(self.trainer))
        self.stop = StopControl(self.trainer, self.timer, lambda: self.iteration)
        self.reference = self._reference()
        sampler = self.sampler = Sampler(
            self.policy,
            self.tokenizer,
            self.verifier,
            settings=self.rollout,
            seed=self.seed,
            runtime=self.runtime,
            timer=self.timer,
            idle=self._idle_while_sampling,
        )
        values = None
        if self.critic is not None:
            values = ValueReader(self.critic, self.spec.link, self.budget, self.runtime, self.timer)
        select = selection_of(self.trainer)
        if select.by == "tracker" and self.memory_of_prompts is None:
            self.memory_of_prompts = PromptTracker()
        memory = self.memory_of_prompts
        self.selector = ProblemSelector(select, values, memory, self.runtime, self.timer)
        self.collector = Collector(
            self.spec,
            sampler,
            sampling=self.sampling,
            samples=self.samples,
            minibatch_size=self.batch_settings.minibatch_size,
            reward=self.reward,
            advantage=self.advantage,
            kl=self.kl,
            values=values,
            memory=memory if self.spec.memory is not None else None,
            reference=self.reference,
            runtime=self.runtime,
            timer=self.timer,
            stop=self.stop,
        )
        self.evaluator = Evaluator(
            sampler,
            self.evaluation,
            self.sampling.max_new_tokens,
            values if self.evaluation.values else None,
            self.runtime,
            self.timer,
            self.stop,
        )

    def _load_networks(self) -> None:
        offload, compute = self.memory.cpu_offload, compute_dtype(self._trainer)
        bonus = self.ppo.entropy_coef != 0
        make = partial(make_policy, self.policy_source, self.tokenizer, self.memory, self.lora, bonus)
        self.policy = place(make, self.device_mesh, offload, compute)
        if self.spec.critic != "none" and not self.policy_only:
            critic = partial(make_critic, self.critic_source, self.tokenizer, self.memory, self.spec.critic)
            self.critic = place(critic, self.device_mesh, offload, compute)
        self._loaded = True

    def _reference(self) -> ReferencePolicy | None:
        """The reference policy of a KL penalty; with LoRA, the policy without its adapters."""
        if not self.kl.coef or self.trainer.state.fn != "fit":
            return None
        policy = self.policy
        if self.lora is None or self.kl.reference is not None:
            make = partial(make_reference, self.kl.reference or self.policy_source, self.tokenizer)
            policy = place(make, self.device_mesh, self.memory.cpu_offload, compute_dtype(self.trainer))
        return ReferencePolicy(policy, self.policy, self.budget, self.sampling.temperature, self.runtime)

    def _idle_while_sampling(self) -> list[Tensor]:
        networks = [network for network in (self.policy, self.critic, self.reference) if network is not None]
        parameters = (p for network in networks for p in network.parameters())
        optimizers, device = self.trainer.strategy.optimizers, self.runtime.device
        return idle_tensors(self.memory.offload_while_sampling, optimizers, parameters, device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the policy, and another for the critic if there is one."""
        policy = adamw(self.policy, self.policy_optimizer)
        return [policy] if self.critic is None else [policy, adamw(self.critic, self.critic_optimizer)]

    def on_train_start(self) -> None:
        """Create the updaters with the optimizers wrapped by Lightning, and the engine if there is none yet."""
        assert self.sampler is not None
        engine = self.sampler.engine(self.iteration)
        check_correction(self.rollout.engine, engine.exact, self.ppo, self.correction)
        self.corrects = not engine.exact if self.correction.enabled is None else self.correction.enabled
        optimizers = self.optimizers()
        wrapped = cast(list[torch.optim.Optimizer], optimizers if isinstance(optimizers, list) else [optimizers])
        common = (self.budget, self.runtime, self.stop, run_folder(self.trainer))
        self.policy_updater = Updater("policy", self.policy, wrapped[0], self.policy_optimizer, *common)
        self.critic_updater = None
        if self.critic is not None:
            self.critic_updater = Updater("critic", self.critic, wrapped[1], self.critic_optimizer, *common)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, IterationProblems):
            size = self.batch_settings.minibatch_size
            check_minibatch(data.problems_per_epoch, self.samples, size, self.runtime.ranks)
            self.runtime.say(self.iteration_size(data.problems_per_epoch))
        if self.sampling.top_p < 1 or self.sampling.top_k:
            self.runtime.say(
                "model.sampling: the policy is sampled with top_p or top_k but learns without, so that its ratio is "
                "biased; set top_p 1 and top_k 0"
            )
        if self.iteration and not engine.deterministic:
            self.runtime.say(
                f"resumed: engine {self.rollout.engine} does not repeat its samples; the run goes on with others"
            )
        if self.memory_of_prompts is not None and isinstance(data, ProblemPasses):
            self._check_repetition(data)

    def _check_repetition(self, data: ProblemPasses) -> None:
        """Refuse a memory of prompts where none comes again; warn where none does in this run.

        Raises:
            InputError: the training problems are new for ever.
        """
        size, iterations = data.problems_in_a_pass, self.trainer.max_epochs or 0
        who = "data.select.by: tracker" if self.spec.memory is None else self.spec.title
        if size == math.inf:
            raise InputError(
                f"{who} remembers how often each prompt was solved, but data.train makes new problems for "
                "ever; set data.train.limit (e.g. 1024), so that they come again"
            )
        if 0 < iterations * data.problems_drawn <= (size or 0):
            self.runtime.say(
                f"{who}: no prompt comes again in {iterations:,} iterations of {data.problems_drawn:,} "
                f"of {size:,} problems, so that its memory is of no use; raise trainer.max_epochs or set "
                "data.train.limit"
            )

    def iteration_size(self, problems: int) -> str:
        """One line: what an iteration of so many problems samples and learns from."""
        sequences = problems * self.samples
        steps = self.ppo.epochs * sequences // self.batch_settings.minibatch_size
        greedy = f" and {problems:,} greedy ones" if self.spec.greedy else ""
        return f"iteration: {problems:,} problems × {self.samples} = {sequences:,} sequences{greedy}, {steps:,} steps"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings, the token budget and the memory of prompts."""
        save_settings(self, checkpoint)
        self.budget.save_to(checkpoint)
        if self.memory_of_prompts is not None:
            checkpoint[MEMORY] = self.memory_of_prompts.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the token budget and the memory of prompts."""
        self.budget.load_from(checkpoint)
        self._paid = True  # it is not known whether none was
        if self.memory_of_prompts is not None and MEMORY in checkpoint:  # not in one of another algorithm
            self.memory_of_prompts.load_state_dict(checkpoint[MEMORY])

    def teardown(self, stage: str) -> None:
        """End the verifier's workers and the rollout engine."""
        self.verifier.close()
        if self.sampler is not None:
            self.sampler.close()

    def exports(self) -> Mapping[str, PreTrainedModel]:
        """The trained models by name."""
        critic = {} if self.critic is None else {"critic": self.critic.model}
        return {"policy": self.policy.model, **critic}

    def sources(self) -> Mapping[str, ModelSource]:
        """Where they came from."""
        critic = {} if self.critic is None else {"critic": self.critic_source}
        return {"policy": self.policy_source, **critic}

    def adapter_base(self) -> str | None:
        """Path of the model that the policy's trained adapters belong to; None without, and on top of a merged one."""
        return None if self.lora is None or self.policy_source.adapter else self.policy_source.path

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Intact[TrainingBatch], batch_idx: int) -> None:
        """PPO epochs × minibatches × micro-batches over one iteration's rollouts."""
        rollouts = self.last_rollouts = content(batch)
        lrs = self._set_learning_rates()
        steps: list[Terms] = []
        with self.timer("update"), self.runtime.local_gradients():
            shared = whole_batch(rollouts, self.samples)
            plan = self.plan(shared)
            old = self.old_logprobs(shared, plan)
            for i, minibatch in enumerate(plan):
                self.timer.report("updating", i, len(plan))
                self.stop.check(boundary=i == 0)
                step = self.critic_step(shared, minibatch.critic)
                if self.iteration >= self.ppo.critic_warmup:
                    step |= self.policy_step(shared, minibatch.policy, old)
                steps.append(step)
            self.timer.report("updating", len(plan), len(plan))
        seconds = self.timer.seconds.get("rollout", 0.0)
        mine = own_rows(len(shared), self.samples, self.runtime.rank, self.runtime.ranks)
        own = old[mine, : rollouts.response_ids.shape[1]]
        values_of = "tracker" if self.spec.memory is not None else "critic" if self.critic is not None else ""
        metrics = rollout_metrics(rollouts, own, seconds, values_of, self.iteration, self.correction.sequence_cap)
        self.finish_iteration({**metrics, **step_metrics(steps), **self._remember(rollouts, steps), **lrs})
        self._paid |= metrics["rollout/accuracy"] > 0
        if self.iteration == PATIENCE and not self._paid:
            reasons = {name: metrics[f"rollout/reason/{name}"] for name in get_args(Reason)}
            self.runtime.say(f"no response of the first {PATIENCE} iterations is correct; {no_reward(reasons)}")

    def plan(self, batch: TrainingBatch) -> list[Minibatch]:
        """This rank's rows of every micro-batch of every minibatch of every PPO epoch.

        Minibatches are random partitions of the iteration's sequences, keyed by (seed, iteration), each shared out over
        the ranks by length.
        """
        runtime, size = self.runtime, self.batch_settings.minibatch_size
        problems = len(batch) // self.samples
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        learned, lengths = batch.loss_mask.any(dim=1).cpu(), batch.lengths()
        critic_lengths = lengths if self.critic is None else self.critic.lengths(batch)
        minibatches = [
            rows for _ in range(self.ppo.epochs) for rows in shared_minibatches(problems, self.samples, size, generator)
        ]

        def mine(rows: Tensor, lengths: Tensor) -> list[Tensor]:
            return self.budget.cut(balanced_shares(rows, lengths, runtime.ranks)[runtime.rank], lengths)

        return [Minibatch(mine(rows, critic_lengths), mine(rows[learned[rows]], lengths)) for rows in minibatches]

    @torch.no_grad()
    def old_logprobs(self, batch: TrainingBatch, plan: list[Minibatch]) -> Tensor:
        """[B, T] log-probabilities under the weights before any update."""
        if self.ppo.old_logprobs == "sampler":
            return batch.logprobs
        old = torch.zeros_like(batch.logprobs)
        for minibatch in plan[: len(plan) // self.ppo.epochs]:
            read_logprobs(
                self.policy, batch, minibatch.policy, self.sampling.temperature, self.budget, self.runtime, old
            )
        # Each rank has read some rows; the sampler's are kept of responses that the policy is not trained on.
        return torch.where(batch.loss_mask.any(dim=1)[:, None], reduced(old), batch.logprobs)

    def critic_step(self, batch: TrainingBatch, pieces: list[Tensor]) -> Terms:
        """One step of the critic on the mean loss over a minibatch's sequences, or over its tokens."""
        if self.critic_updater is None or self.critic is None:
            return {}
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
        count = int(reduced(self.critic.mask(batch)[rows].sum()))
        loss = partial(self.critic_loss, batch, count)
        with self.timer(CRITIC):
            return self.critic_updater.step(
                pieces, self.critic.lengths(batch), loss, CRITIC_TERMS, partial(self._contents, batch)
            )

    def critic_loss(self, batch: TrainingBatch, count: int, rows: Tensor) -> Terms:
        """The critic's loss on a micro-batch, as a share of that of a minibatch of `count` predictions."""
        assert self.critic is not None and self.spec.critic_loss is not None
        piece = batch.select(rows)
        outputs = self.critic(*self.critic.inputs(piece))
        targets, before = piece.targets.to(outputs.dtype), piece.values.to(outputs.dtype)
        loss = self.spec.critic_loss(outputs, targets, before, self.ppo.value_clip)
        return {"critic/loss": masked_sum(loss, self.critic.mask(piece)) / count}

    def policy_step(self, batch: TrainingBatch, pieces: list[Tensor], old: Tensor) -> Terms:
        """One step of the policy on a minibatch; none if no rank has a response to train on."""
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
        mine = batch.loss_mask[rows].sum()
        sequences, tokens = reduced(torch.stack([torch.full_like(mine, len(rows)), mine])).tolist()
        if not sequences:
            return {}
        loss = partial(self.policy_loss, batch, old, sequences, tokens)
        return self.policy_updater.step(pieces, batch.lengths(), loss, POLICY_TERMS, partial(self._contents, batch))

    def policy_loss(self, batch: TrainingBatch, old: Tensor, sequences: int, tokens: int, rows: Tensor) -> Terms:
        """The policy's loss on a micro-batch, as a share of that of a minibatch of `sequences` and `tokens`."""
        piece = batch.select(rows)
        terms = self.policy(*piece.tokens, self.sampling.temperature)
        mask, dtype = piece.loss_mask, terms.logprobs.dtype
        before = old[rows, : mask.shape[1]].to(dtype)
        surrogate = self.surrogate(terms.logprobs, before, piece.advantages.to(dtype), mask)
        weights = token_weights(
            mask, self.aggregation, sequences=sequences, tokens=tokens, norm_length=self.sampling.max_new_tokens
        )
        loss = surrogate.loss
        if self.corrects:
            caps = {"token_cap": self.correction.token_cap, "sequence_cap": self.correction.sequence_cap}
            loss = loss * importance_weights(before, piece.logprobs.to(dtype), mask, **caps)
        per_token = loss - self.ppo.entropy_coef * terms.entropy
        if piece.reference is not None and self.kl.where == "loss":
            penalty = kl_penalty(terms.logprobs, piece.reference.to(dtype), self.kl.estimator)
            per_token = per_token + self.kl.coef * penalty
        loss = masked_sum(per_token * weights, mask)
        return policy_terms(loss, surrogate, terms.logprobs, terms.entropy, before, mask, tokens)

    def _remember(self, batch: TrainingBatch, steps: list[Terms]) -> dict[str, float]:
        """Take the iteration into the memory of prompts, only once it is finished: a resumed run does it again."""
        if self.memory_of_prompts is None:
            return {}
        kl = iteration_kl([float(step["policy/approx_kl"]) for step in steps if "policy/approx_kl" in step])
        keys = prompt_keys([s.problem for s in batch.scored]).to(batch.labels.device)
        return self.memory_of_prompts.update(gathered(keys), gathered(batch.labels), kl)

    def _contents(self, batch: TrainingBatch, rows: Tensor) -> dict[str, object]:
        assert self.last_rollouts is not None
        scored = whole_list(self.last_rollouts.scored, self.samples)
        return {"iteration": self.iteration, **replace(batch, scored=scored).contents(rows)}

    def _set_learning_rates(self) -> dict[str, float]:
        iterations = self.trainer.max_epochs or 1
        updaters = {"policy": self.policy_updater, "critic": self.critic_updater}
        return {
            f"{name}/lr": updater.set_lr(self.iteration, iterations) for name, updater in updaters.items() if updater
        }

    def finish_iteration(self, metrics: Mapping[str, float]) -> None:
        """Count the iteration, and log its metrics over all ranks."""
        self.iterations_done += 1
        # As "step", the iteration becomes the loggers' x-axis, the same for training and validation.
        own = {**self.selector.end_iteration(), **self.timer.end_iteration(), **self.budget.end_iteration()}
        own["step"] = float(self.iteration)
        self.log_dict({**metrics, **own}, on_step=True, on_epoch=False, batch_size=1)

    # ----------------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.evaluator.begin(self.trainer)

    def validation_step(  # type: ignore[override]
        self, batch: Intact[list[Encoded]], batch_idx: int, dataloader_idx: int = 0
    ) -> list[Scored]:
        """Answer held-out problems, greedily and with k samples each, for `validation_results`."""
        problems = content(batch)
        return self.evaluator.answer(problems, dataloader_idx, self.iteration)

    def validation_results(self) -> dict[str, Result]:
        """Metrics of the running or latest validation by set. Collective."""
        return self.evaluator.results.compute()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, ``val/accuracy`` among them."""
        if results := self.validation_results():
            self.log_dict({**flatten(results), "step": float(self.iteration)}, batch_size=1)


def check_settings(
    spec: AlgorithmSpec,
    samples: int,
    policy: ModelSource,
    sampling: Sampling,
    evaluation: EvalSettings,
    ppo: PPOSettings,
    advantage: AdvantageSettings,
    kl: KLSettings,
) -> None:
    """Check that an algorithm can be trained with these settings.

    Raises:
        InputError: too few samples, groups of one, critic settings without a critic, a KL penalty without a trained
            reference, or sampling that is greedy or out of range.
    """
    least = 2 if spec.samples_per_prompt > 1 else 1
    if samples < least:
        raise InputError(f"model.batch.samples_per_prompt is {samples}; {spec.title} needs at least {least}")
    if advantage.drop_equal_groups and samples < 2:
        raise InputError(
            "model.advantage.drop_equal_groups: with one response per prompt every group is equal, and all would be "
            "dropped; set model.batch.samples_per_prompt to 2 or more, or leave it out"
        )
    if advantage.value_weight < 1 and spec.critic != "scalar":
        raise InputError(
            f"model.advantage.value_weight is {advantage.value_weight}, but {spec.title} has no critic that values "
            "prompts; leave it out"
        )
    if advantage.value_weight < 1 and samples < 2:
        raise InputError(
            f"model.advantage.value_weight is {advantage.value_weight}: with one response per prompt there are no "
            "others to compare with; set model.batch.samples_per_prompt to 2 or more, or leave it out"
        )
    if advantage.critic_lam is not None and spec.critic != "token":
        raise InputError(f"model.advantage.critic_lam: {spec.title} has no critic of tokens; leave it out")
    if ppo.critic_warmup and spec.critic == "none":
        raise InputError(
            f"model.ppo.critic_warmup is {ppo.critic_warmup}, but {spec.title} has no critic; leave it out"
        )
    if evaluation.values and spec.critic == "none":
        raise InputError(f"model.evaluation.values: {spec.title} has no critic; leave it out")
    if kl.coef and (kl.reference or policy).init == "random":
        raise InputError(
            "model.kl: a policy with init: random has no weights to stay close to; name a trained model in "
            "model.kl.reference"
        )
    check_sampling(sampling)
    if sampling.greedy:
        raise InputError("model.sampling.temperature is 0: training needs sampled responses; set it above 0")


def check_correction(engine: str, exact: bool, ppo: PPOSettings, correction: CorrectionSettings) -> None:
    """Check that old log-probabilities and their correction suit the rollout engine.

    Args:
        engine: its name.
        exact: see `RolloutEngine`.
        ppo: where the old log-probabilities come from.
        correction: whether the policy loss is corrected.

    Raises:
        InputError: the sampler's log-probabilities are used as they are though they are not exact, or are to be
            corrected by themselves.
    """
    if ppo.old_logprobs != "sampler":
        return
    if not exact:
        raise InputError(
            f"model.ppo.old_logprobs is sampler, but those of the engine {engine} are not exactly the policy's: "
            "set model.ppo.old_logprobs to recompute"
        )
    if correction.enabled:
        raise InputError(
            "model.correction.enabled: with model.ppo.old_logprobs: sampler both distributions are one, and every "
            "weight is 1; set model.ppo.old_logprobs to recompute, or leave the correction out"
        )
