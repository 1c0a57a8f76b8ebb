"""What every way of training shares: a policy, its tokenizer, a sampler, a verifier, and validation by sampling."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from sppo_lit.algorithms.batching import shared_minibatches
from sppo_lit.distributed.collectives import (
    is_sharded,
    missing_passes,
    ranks,
    reduced,
    sharded,
    sum_gradients,
    unsharded_copy,
    whole,
    whole_parameters,
)
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import ModelSource, checkpoint_layers, eos_token_ids, load_causal_lm, load_tokenizer
from sppo_lit.models.lora import add_adapters
from sppo_lit.models.policy import Policy
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.rollout.torch_engine import TorchEngine
from sppo_lit.settings import EvalSettings, LoraSettings, OptimizerSettings, VerifierSettings
from sppo_lit.training.evaluator import Validation
from sppo_lit.training.faults import FaultTolerantModule
from sppo_lit.types import Completion, Problem, Sampling, Scored, Verdict
from sppo_lit.utils.peak_memory import peak_mib, reset_peak

Encoded = tuple[Problem, list[int]]
"""A problem and its prompt's token ids."""


class PolicyModule(FaultTolerantModule):
    """A policy that can sample, be judged and be validated; subclasses say how it learns.

    One Lightning epoch is one iteration. The data module calls `collect` with the iteration's problems, and what it
    returns is the single batch that `training_step` receives.

    Args:
        policy: where the policy comes from.
        sampling: how training responses are drawn.
        evaluation: how held-out problems are answered.
        policy_optimizer: learning rate, schedule and clipping.
        verifier: worker processes and deadline.
        micro_batch_tokens: most tokens, padding included, of one forward pass with gradient.
        max_concurrent: most sequences decoded at once.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        lora: train adapters of the policy instead of its weights.
        cpu_offload: under `--strategy fsdp`, keep weights, gradients and optimizer states in the CPU's memory.
    """

    automatic_optimization = False
    minibatch_size: int
    samples = 1  # of each problem, in an iteration
    iterations_done: Tensor
    custom_rewards: Mapping[str, float] = {}  # weights by name, for `verifier.custom`

    def __init__(
        self,
        policy: ModelSource,
        sampling: Sampling,
        evaluation: EvalSettings,
        policy_optimizer: OptimizerSettings,
        verifier: VerifierSettings,
        micro_batch_tokens: int,
        max_concurrent: int,
        gradient_checkpointing: bool = False,
        lora: LoraSettings | None = None,
        cpu_offload: bool = False,
    ) -> None:
        super().__init__()
        self.policy_source = policy
        self.sampling = sampling
        self.evaluation = evaluation
        self.policy_optimizer = policy_optimizer
        self.micro_batch_tokens = micro_batch_tokens
        self.max_concurrent = max_concurrent
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora
        self.cpu_offload = cpu_offload
        self.tokenizer = load_tokenizer(policy)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.critic: Any = None
        self.last_rollout: Any = None
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}  # peak of each phase, MiB
        self.validation = Validation(self)
        self._sampled: list[int] = [0, 0]
        self._verifier_settings = verifier
        self._verifier: VerifierPool | None = None
        self._engine: TorchEngine | None = None
        self._engine_iteration = -1
        self.register_buffer("iterations_done", torch.zeros((), dtype=torch.int64))

    # ------------------------------------------------------------------------------------------------ life of a run

    @property
    def iteration(self) -> int:
        """Iterations completed, saved with the weights; `current_epoch` lags behind it just after a resume."""
        return int(self.iterations_done)

    def setup(self, stage: str) -> None:
        """Keep batches as they are: under bf16-true Lightning would round rewards and log-probabilities too."""
        self.trainer.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]

    def configure_model(self) -> None:
        """Load the policy (once; Lightning calls this before every fit, validate and test)."""
        if not hasattr(self, "policy"):
            self.policy: Any = self.place(self._new_policy)

    def _new_policy(self, empty: bool) -> Policy:
        model = load_causal_lm(self.policy_source, self.tokenizer, empty)
        if self.lora is not None:
            with torch.device("meta") if empty else nullcontext():
                add_adapters(model, self.lora.rank, self.lora.alpha, self.lora.targets)
        if not empty:
            model.generation_config.eos_token_id = eos_token_ids(model, self.tokenizer)  # type: ignore[union-attr]
        policy = Policy(model)
        if self.gradient_checkpointing:
            checkpoint_layers(model)
        return policy

    def place(self, make: Callable[[bool], Any]) -> Any:
        """A network; under sharding, this rank's pieces of the one that rank zero loads.

        Args:
            make: makes it; called with True, without weights (on the meta device).
        """
        if self.device_mesh is None:
            return make(False)
        return sharded(make, self.device_mesh["data_parallel"], self.cpu_offload)

    def teardown(self, stage: str) -> None:
        """End the verifier's workers and forget the sampler."""
        if self._verifier is not None:
            self._verifier.close()
        self._verifier = self._engine = None
        self._engine_iteration = -1

    # ------------------------------------------------------------------------------------------ sampling and judging

    @property
    def engine(self) -> TorchEngine:
        """The sampler: decodes with the policy's own weights, or with a whole copy of them where they are sharded.

        The copy is renewed once per iteration, by all ranks together; decoding then needs no other rank.
        """
        model = self.policy.model
        sharded = is_sharded(model)
        if self._engine is None:
            ends, pad = eos_token_ids(model, self.tokenizer), int(self.tokenizer.pad_token_id)
            own = unsharded_copy(model, self.device) if sharded else model
            self._engine = TorchEngine(own, ends, pad, self.max_concurrent)
        if sharded and self._engine_iteration != self.iteration:
            self._engine.sync_weights(whole_parameters(model))
            self._engine_iteration = self.iteration
        return self._engine

    @property
    def verifier(self) -> VerifierPool:
        """The pool of judging processes, started at first use."""
        if self._verifier is None:
            s = self._verifier_settings
            self._verifier = VerifierPool(s.workers, s.deadline, s.memory_mb, functions=list(self.custom_rewards))
        return self._verifier

    @torch.no_grad()
    def sample(
        self,
        encoded: Sequence[Encoded],
        sampling: Sampling,
        stage: str,
        samples: Sequence[int],
        phase: str,
        done: int = 0,
        total: int | None = None,
    ) -> list[Completion]:
        """Draw one response per entry.

        Args:
            encoded: problems with their prompt ids.
            sampling: how.
            stage: part of the key of the random numbers, e.g. "train/12".
            samples: sample index of each entry within its problem.
            phase: what the progress display calls it.
            done: responses of this phase that earlier calls have drawn.
            total: responses of the phase in all; None for those of this call.
        """
        keys = [sequence_key(self.seed, stage, p.key, s) for (p, _), s in zip(encoded, samples, strict=True)]
        start = time.perf_counter()

        def progress(finished: int, asked: int, tokens: int) -> None:
            if stage != "validate" or ranks() == 1 or not self.evaluation.values:  # whose reading is joint
                self.break_off(boundary=stage != "validate")
            rate = tokens / max(time.perf_counter() - start, 1e-9)
            self.report_phase(phase, done + finished, total or asked, tokens=tokens, tokens_per_second=rate)

        engine = self.engine
        with self.trainer.precision_plugin.forward_context():
            return engine.generate([ids for _, ids in encoded], sampling, keys=keys, on_progress=progress)

    def count_sampled(self, completions: Sequence[Completion]) -> None:
        """Add responses, and their tokens, to what this iteration has sampled."""
        self._sampled[0] += len(completions)
        self._sampled[1] += sum(len(c.response_ids) for c in completions)

    def judge(self, encoded: Sequence[Encoded], completions: Sequence[Completion]) -> tuple[list[str], list[Verdict]]:
        """Decoded responses and their verdicts."""
        texts = [str(self.tokenizer.decode(c.response_ids, skip_special_tokens=True)) for c in completions]
        self.report_phase("verifying", 0, len(texts))
        verdicts = self.verifier.score(
            texts, [p.answer for p, _ in encoded], finished=[c.finished for c in completions]
        )
        self.report_phase("verifying", len(texts), len(texts))
        return texts, verdicts

    def on_validation_epoch_start(self) -> None:
        """Count what is to come."""
        self.validation.begin()

    def validation_step(  # type: ignore[override]
        self, batch: list[Encoded], batch_idx: int, dataloader_idx: int = 0
    ) -> list[Scored]:
        """Answer held-out problems: greedily, and with k samples each; the `Evaluation` callback adds them up."""
        with self.interruptible(boundary=False):
            scored = self.validation.answer(batch, dataloader_idx)
        return scored

    def read_values(
        self, encoded: Sequence[Encoded], completions: Sequence[Completion], scored: Sequence[Scored]
    ) -> None:
        """Set the values of validation's responses, in place: what the critic predicts, if the module has one."""

    # ----------------------------------------------------------------------------------------------- optimizer steps

    def adamw(self, network: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
        """AdamW over what a network trains; weight decay spares vectors (norms and biases)."""
        trained = [p for p in network.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)

    def optimizer_step_clipped(self, optimizer: Any, settings: OptimizerSettings) -> Tensor:
        """Sum the gradients over ranks, clip by global norm, step, zero; one that is not finite skips the step.

        Returns:
            the norm before clipping, a float32 scalar (not finite where the step was skipped).
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sum_gradients(parameters)
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm))
        if torch.isfinite(norm):  # the same number on every rank
            optimizer.step()
        optimizer.zero_grad()
        return norm.detach()

    def minibatches(self, sequences: int, epochs: int = 1) -> list[Tensor]:
        """This rank's rows of the iteration's minibatches, in random partitions keyed by (seed, iteration).

        Args:
            sequences: of this rank.
            epochs: passes over all sequences, each in a partition of its own.

        Raises:
            InputError: see `check_minibatch`.
        """
        n, size = self.trainer.world_size, self.minibatch_size
        problems = sequences // self.samples * n
        check_minibatch(problems, self, n)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        share = (self.trainer.global_rank, n)
        return [m for _ in range(epochs) for m in shared_minibatches(problems, self.samples, size, generator, *share)]

    def join_passes(self, network: Any, passes: int) -> None:
        """Begin a minibatch's passes together: where passes are joint (sharded weights), a rank with fewer adds some.

        They run over one made-up token and have no gradient.
        """
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        length = torch.ones(1, dtype=torch.int64, device=self.device)
        for _ in range(missing_passes(network, passes, self.device)):
            if isinstance(network, Policy):
                nothing = network(ids, length, ids, length, 1.0).logprobs.sum() * 0.0
            else:
                prompt_only = isinstance(network, ScalarCritic)
                nothing = network(*((ids, length) if prompt_only else (ids, length, ids, length))).sum() * 0.0
            if nothing.requires_grad:
                self.manual_backward(nothing)

    def local_backward(self) -> AbstractContextManager[Any]:
        """Backward passes in here stay on this rank: gradients are summed once per minibatch, not per micro-batch."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def set_lr(self, optimizer: Any, settings: OptimizerSettings) -> float:
        """Set this iteration's learning rate and return it."""
        lr = settings.lr_at(self.iteration, self.trainer.max_epochs or 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    # ------------------------------------------------------------------------------------------------------ reporting

    def report_phase(self, phase: str, done: int, total: int, **facts: float) -> None:
        """Tell every callback that has `on_phase` how far this phase of the iteration is."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            hook = getattr(callback, "on_phase", None)
            if hook is not None:
                hook(self.trainer, self, phase, done, total, facts)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to this iteration's `phase`, without those spent in `wait`.

        Its peak memory is noted as well, except that of `wait`, which lies inside other phases.
        """
        measured = phase != "wait" and reset_peak(self.device)
        start, waited = time.perf_counter(), self.seconds.get("wait", 0.0)
        yield
        if measured:
            self.memory[phase] = max(self.memory.get(phase, 0.0), peak_mib(self.device))
        elsewhere = self.seconds.get("wait", 0.0) - waited
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start - elsewhere

    def finish_iteration(self, metrics: dict[str, Any]) -> None:
        """Log the iteration's metrics with each phase's seconds (mean over ranks) and peak memory, and count it.

        Args:
            metrics: by name, of all ranks together.
        """
        spent = [*self.seconds.values(), sum(self.seconds.values())]
        seconds = torch.tensor(spent, dtype=torch.float32, device=self.device) / ranks()
        names = [f"time/{phase}" for phase in (*self.seconds, "iteration")]
        times = dict(zip(names, reduced(seconds).tolist(), strict=True))
        sampled = reduced(torch.tensor(self._sampled, device=self.device)).tolist()
        kinds = ("rollout/sampled_sequences", "rollout/sampled_tokens")
        counts = dict(zip(kinds, sampled, strict=True)) if sampled[0] else {}
        counts |= {"update/micro_batch_tokens": self.micro_batch_tokens, "update/out_of_memory": self.out_of_memory}
        peaks = torch.tensor(list(self.memory.values()), dtype=torch.float32, device=self.device)
        largest = reduced(peaks, dist.ReduceOp.MAX).tolist() if self.memory else []
        memory = {f"memory/{phase}": mib for phase, mib in zip(self.memory, largest, strict=True)}
        self.seconds, self.memory, self._sampled, self.out_of_memory = {}, {}, [0, 0], 0
        self.iterations_done += 1
        # As "step", the iteration becomes the loggers' x-axis, the same for training and validation.
        for name, value in {**metrics, **times, **counts, **memory, "step": self.iteration}.items():
            self.log(name, float(value), on_step=True, on_epoch=False, batch_size=1)


def check_limits(where: str, **positive: int) -> None:
    """Every named setting of the recipe's section `where` must be at least 1.

    Raises:
        InputError: one is not.
    """
    for name, value in positive.items():
        if value < 1:
            raise InputError(f"{where}.{name} is {value}; it must be at least 1")


def check_minibatch(problems: int, model: PolicyModule, ranks: int = 1) -> None:
    """An iteration's sequences must be cut into whole minibatches, and both into equal shares for the ranks.

    Args:
        problems: of one iteration.
        model: knows samples per problem and the size of a minibatch.
        ranks: processes of the run.

    Raises:
        InputError: they cannot.
    """
    samples, size = model.samples, model.minibatch_size
    if problems * samples % size:
        wrong = "is larger than" if size > problems * samples else "does not divide"
        raise InputError(
            f"model.minibatch_size {size} {wrong} the {problems * samples} sequences of an iteration "
            f"(data.problems_per_epoch {problems} × {samples} per problem); change one of them"
        )
    if problems % ranks or size % ranks:
        raise InputError(
            f"{ranks} processes cannot share data.problems_per_epoch {problems} and model.minibatch_size {size} "
            "equally; make both multiples of the number of processes, or change --devices"
        )
