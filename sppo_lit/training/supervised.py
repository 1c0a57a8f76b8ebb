"""Supervised warm-up on worked solutions, before reinforcement learning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sppo_lit.algorithms.batching import check_minibatch, pad_rows, shared_minibatches
from sppo_lit.algorithms.masking import masked_sum, response_mask
from sppo_lit.distributed.collectives import reduced
from sppo_lit.distributed.sharding import place
from sppo_lit.errors import InputError
from sppo_lit.models.loading import load_tokenizer
from sppo_lit.models.policy import Policy
from sppo_lit.rewards.verifiers import make_verifier
from sppo_lit.settings import (
    BatchSettings,
    EvalSettings,
    LoraSettings,
    MemorySettings,
    ModelSource,
    OptimizerSettings,
    RolloutSettings,
    VerifierSettings,
    check_sampling,
)
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.diagnostics import step_metrics
from sppo_lit.training.evaluator import Evaluator
from sppo_lit.training.metrics import Result, flatten
from sppo_lit.training.networks import make_policy
from sppo_lit.training.protocols import IterationProblems, selection_of
from sppo_lit.training.reloading import save_settings, saved_settings
from sppo_lit.training.run_folder import run_folder
from sppo_lit.training.runtime import Runtime, compute_dtype
from sppo_lit.training.sampler import Sampler
from sppo_lit.training.selection import check_selection
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import PhaseTimer, listeners
from sppo_lit.training.trainer_checks import check_trainer, content
from sppo_lit.training.updater import Terms, Updater, adamw, idle_tensors
from sppo_lit.types import Encoded, Intact, Rollouts, Sampling, Scored, Sequences
from sppo_lit.utils.cuda import prepare_cuda

if TYPE_CHECKING:
    from typing_extensions import Self


class SolutionCollector:
    """Makes the batch of worked solutions of an iteration.

    Args:
        tokenizer: the policy's tokenizer.
        minibatch_size: solutions of one optimizer step, over all ranks.
        runtime: runtime of this rank.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, minibatch_size: int, runtime: Runtime) -> None:
        self._tokenizer, self._minibatch_size, self._runtime = tokenizer, minibatch_size, runtime

    def collect(self, problems: Sequence[Encoded], iteration: int) -> Sequences:
        """The iteration's solutions, each ended by the end-of-sequence token.

        Args:
            problems: problems of this rank, with their prompt ids.
            iteration: not used.

        Raises:
            InputError: a problem has no worked solution, or they cannot be cut into minibatches.
        """
        check_minibatch(len(problems) * self._runtime.ranks, 1, self._minibatch_size, self._runtime.ranks)
        end = int(self._tokenizer.eos_token_id)  # type: ignore[arg-type]
        responses = []
        for problem, _ in problems:
            if problem.solution is None:
                raise InputError(f"{problem.key}: no worked solution to train on; choose a source that has them")
            responses.append([*self._tokenizer(problem.solution, add_special_tokens=False)["input_ids"], end])
        device = self._runtime.device
        return Sequences(*pad_rows([ids for _, ids in problems], device), *pad_rows(responses, device))


class SupervisedModule(pl.LightningModule):
    """Cross-entropy on the response tokens of worked solutions.

    Args:
        policy: where the policy comes from; `init: random` starts from scratch.
        sampling: only its `max_new_tokens` is used, in validation.
        evaluation: how held-out problems are answered.
        batch: minibatch size; every problem has one solution.
        verifier: how answers are verified.
        rollout: the engine that samples the responses of validation.
        policy_optimizer: learning rate, schedule and clipping.
        memory: limits on the accelerator memory of a training step.
        lora: train adapters of the policy instead of its weights.

    Attributes:
        last_rollouts: None, nothing is sampled.

    Raises:
        InputError: settings that need a critic or several responses.
    """

    automatic_optimization = False
    iterations_done: Tensor
    policy: Policy
    critic = None
    samples = 1

    def __init__(
        self,
        policy: ModelSource,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        evaluation: EvalSettings = EvalSettings(),  # noqa: B008
        batch: BatchSettings = BatchSettings(minibatch_size=64),  # noqa: B008
        verifier: VerifierSettings = VerifierSettings(),  # noqa: B008
        rollout: RolloutSettings = RolloutSettings(),  # noqa: B008
        policy_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3),  # noqa: B008
        memory: MemorySettings = MemorySettings(),  # noqa: B008
        lora: LoraSettings | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if evaluation.values:
            raise InputError("model.evaluation.values: supervised training has no critic; leave it out")
        if batch.samples_per_prompt not in (None, 1):
            raise InputError("model.batch.samples_per_prompt: a problem has one worked solution; leave it out")
        check_sampling(sampling)
        self.policy_source, self.sampling, self.evaluation = policy, sampling, evaluation
        self.batch_settings, self.rollout, self.memory, self.lora = batch, rollout, memory, lora
        self.policy_optimizer = policy_optimizer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tokenizer = load_tokenizer(policy)
        self.verifier = make_verifier(verifier)
        self.budget = TokenBudget(memory.micro_batch_tokens)
        self.last_rollouts: Rollouts | None = None
        self.sampler: Sampler | None = None  # until `configure_model`
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
        check_trainer(self.trainer, [self.policy_optimizer])
        check_selection(selection_of(self.trainer), None)
        return []

    def configure_model(self) -> None:
        """Load the policy (once; Lightning calls this before every fit, validate and test), and create the parts."""
        prepare_cuda()
        if not self._loaded:
            make = partial(make_policy, self.policy_source, self.tokenizer, self.memory, self.lora, False)
            self.policy = place(make, self.device_mesh, self.memory.cpu_offload, compute_dtype(self._trainer))
            self._loaded = True
        if self._trainer is None:  # in `load_from_checkpoint`
            return
        self.runtime = Runtime.of(self)
        self.timer = PhaseTimer(self.runtime.device, listeners(self.trainer))
        self.stop = StopControl(self.trainer, self.timer, lambda: self.iteration)
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
        self.collector = SolutionCollector(self.tokenizer, self.batch_settings.minibatch_size, self.runtime)
        limit = self.sampling.max_new_tokens
        self.evaluator = Evaluator(sampler, self.evaluation, limit, None, self.runtime, self.timer, self.stop)

    def _idle_while_sampling(self) -> list[Tensor]:
        optimizers, device = self.trainer.strategy.optimizers, self.runtime.device
        return idle_tensors(self.memory.offload_while_sampling, optimizers, self.policy.parameters(), device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the policy."""
        return adamw(self.policy, self.policy_optimizer)

    def on_train_start(self) -> None:
        """Create the updater with the optimizer wrapped by Lightning."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, IterationProblems):
            check_minibatch(data.problems_per_epoch, 1, self.batch_settings.minibatch_size, self.runtime.ranks)
        folder = run_folder(self.trainer)
        common = (self.policy_optimizer, self.budget, self.runtime, self.stop, folder)
        self.updater = Updater("policy", self.policy, cast(torch.optim.Optimizer, self.optimizers()), *common)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings and the token budget."""
        save_settings(self, checkpoint)
        self.budget.save_to(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the token budget."""
        self.budget.load_from(checkpoint)

    def teardown(self, stage: str) -> None:
        """End the verifier's workers and the rollout engine."""
        self.verifier.close()
        if self.sampler is not None:
            self.sampler.close()

    def exports(self) -> Mapping[str, PreTrainedModel]:
        """The trained models by name."""
        return {"policy": self.policy.model}

    def sources(self) -> Mapping[str, ModelSource]:
        """Where they came from."""
        return {"policy": self.policy_source}

    def adapter_base(self) -> str | None:
        """Path of the model that the policy's trained adapters belong to; None without, and on top of a merged one."""
        return None if self.lora is None or self.policy_source.adapter else self.policy_source.path

    def training_step(self, batch: Intact[Sequences], batch_idx: int) -> None:
        """Minibatches × micro-batches over the iteration's solutions."""
        solutions, runtime = content(batch), self.runtime
        lr = self.updater.set_lr(self.iteration, self.trainer.max_epochs or 1)
        lengths, size = solutions.lengths(), self.batch_settings.minibatch_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        problems = len(solutions) * runtime.ranks
        plan = shared_minibatches(problems, 1, size, generator, runtime.rank, runtime.ranks)
        steps: list[Terms] = []
        with self.timer("update"), runtime.local_gradients():
            for i, rows in enumerate(plan):
                self.stop.check(boundary=i == 0)
                tokens = int(reduced(solutions.response_lengths[rows].sum()))
                pieces, loss = self.budget.cut(rows, lengths), partial(self.loss, solutions, tokens)
                steps.append(self.updater.step(pieces, lengths, loss, ("policy/loss",), solutions.contents))
                self.timer.report("updating", i + 1, len(plan))
        self.finish_iteration({**step_metrics(steps), "policy/lr": lr})

    def loss(self, solutions: Sequences, tokens: int, rows: Tensor) -> Terms:
        """Negative log-likelihood of a micro-batch, as a share of that of a minibatch of `tokens`."""
        piece = solutions.select(rows)
        terms = self.policy(*piece.tokens, 1.0)
        mask = response_mask(piece.response_lengths, piece.response_ids.shape[1])
        return {"policy/loss": -masked_sum(terms.logprobs, mask) / tokens}

    def finish_iteration(self, metrics: Mapping[str, float]) -> None:
        """Count the iteration, and log its metrics over all ranks."""
        self.iterations_done += 1
        # As "step", the iteration becomes the loggers' x-axis, the same for training and validation.
        own = {**self.timer.end_iteration(), **self.budget.end_iteration(), "step": float(self.iteration)}
        self.log_dict({**metrics, **own}, on_step=True, on_epoch=False, batch_size=1)

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.evaluator.begin(self.trainer)

    def validation_step(  # type: ignore[override]
        self, batch: Intact[list[Encoded]], batch_idx: int, dataloader_idx: int = 0
    ) -> list[Scored]:
        """Answer held-out problems; the responses are counted in `validation_results`."""
        problems = content(batch)
        return self.evaluator.answer(problems, dataloader_idx, self.iteration)

    def validation_results(self) -> dict[str, Result]:
        """Metrics of the running or latest validation by set. Collective."""
        return self.evaluator.results.compute()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, ``val/accuracy`` among them."""
        if results := self.validation_results():
            self.log_dict({**flatten(results), "step": float(self.iteration)}, batch_size=1)
