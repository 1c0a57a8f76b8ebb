"""Policy and critic of the control benchmark as a LightningModule: the third stage, reinforcement learning.

The order of an iteration, the algorithms' table and the updates are those of `training.module`; an episode takes the
place of a response, its initial state that of the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from sppo_lit.algorithms.batching import shared_minibatches
from sppo_lit.algorithms.masking import masked_sum, response_mask, token_weights
from sppo_lit.algorithms.specs import algorithm as algorithm_named
from sppo_lit.control.environments import environment as environment_named
from sppo_lit.control.episodes import EpisodeBatch, EpisodeCollector, EpisodeEvaluator, Episodes
from sppo_lit.control.expert import HIDDEN, start_policy
from sppo_lit.control.networks import ControlPolicy, StateCritic
from sppo_lit.control.settings import StartSettings
from sppo_lit.errors import InputError, refuse
from sppo_lit.settings import AdvantageSettings, BatchSettings, OptimizerSettings, PPOSettings
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.diagnostics import CRITIC_TERMS, POLICY_TERMS, policy_terms, rollout_metrics, step_metrics
from sppo_lit.training.metrics import Result, ValidationResults, flatten
from sppo_lit.training.protocols import IterationProblems, validation_names
from sppo_lit.training.reloading import save_settings, saved_settings
from sppo_lit.training.run_folder import run_folder
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import CRITIC, PhaseTimer, listeners
from sppo_lit.training.trainer_checks import check_trainer, content
from sppo_lit.training.updater import Terms, Updater, adamw
from sppo_lit.types import Intact, Scored

if TYPE_CHECKING:
    from typing_extensions import Self

NO_LIMIT = 10**12
"""Tokens of one pass: these networks are small, and a minibatch is never cut."""


class ControlModule(pl.LightningModule):
    """Policy and critic, trained on the outcomes of their own episodes; one process on the CPU.

    Args:
        environment: a name in `ENVIRONMENTS`.
        algorithm: as in `SPPOModule`; not one that remembers prompts, as no initial state comes again.
        start: the first two stages, whose clone this one starts from.
        hidden: sizes of the hidden layers of policy and critic.
        samples: held-out episodes with drawn actions from each initial state.
        greedy: also hold out one with the most likely actions.
        reward: "outcome" pays 0 or 1 at the end; "dense" the shaped reward of every step, to compare PPO with others.
        running_normalisation: keep mean and deviation of observations up to date with every iteration's, as
            stable-baselines3 does; those of the start count as so many steps. None leaves them as they are.
        batch: how an iteration's episodes become optimizer steps.
        ppo: the update; the critic's outputs are not clipped where its loss does not.
        advantage: how rewards become advantages.
        policy_optimizer: learning rate, schedule and clipping of the policy.
        critic_optimizer: the same for the critic.

    Raises:
        InputError: unknown environment or algorithm, or settings that do not fit them.
    """

    automatic_optimization = False
    iterations_done: Tensor
    steps_seen: Tensor

    def __init__(
        self,
        environment: str,
        algorithm: str = "sppo",
        start: StartSettings = StartSettings(),  # noqa: B008 - frozen
        hidden: Sequence[int] = HIDDEN,
        samples: int = 1,
        greedy: bool = False,
        reward: Literal["outcome", "dense"] = "outcome",
        running_normalisation: int | None = None,
        batch: BatchSettings = BatchSettings(minibatch_size=64),  # noqa: B008
        ppo: PPOSettings = PPOSettings(),  # noqa: B008
        advantage: AdvantageSettings = AdvantageSettings(),  # noqa: B008
        policy_optimizer: OptimizerSettings = OptimizerSettings(lr=3e-4),  # noqa: B008
        critic_optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3),  # noqa: B008
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.task = environment_named(environment)
        spec = self.spec = algorithm_named(algorithm)
        self.environment, self.start, self.reward = environment, start, reward
        self.running_normalisation = running_normalisation
        self.samples = spec.samples_per_prompt if batch.samples_per_prompt is None else batch.samples_per_prompt
        self.held_out_samples, self.held_out_greedy = samples, greedy
        least = 2 if spec.samples_per_prompt > 1 else 1
        refuse(
            "model",
            samples=(samples, samples >= 0 and (samples > 0 or greedy), "at least 1, or 0 with greedy: true"),
            hidden=(list(hidden), len(hidden) > 0 and min(hidden) > 0, "sizes of at least one layer, e.g. [64, 64]"),
            running_normalisation=(
                running_normalisation,
                running_normalisation is None or running_normalisation > 0,
                "at least 1, or null",
            ),
            **{"batch.samples_per_prompt": (self.samples, self.samples >= least, f"at least {least}")},
        )
        if spec.memory is not None:
            raise InputError(f"model.algorithm: {spec.title} remembers prompts, but no initial state comes again")
        if reward == "dense" and spec.critic != "token":
            raise InputError(f"model.reward dense needs a critic of every step; {spec.title} has none")
        if ppo.critic_warmup and spec.critic == "none":
            raise InputError(f"model.ppo.critic_warmup: {spec.title} has no critic; leave it out")
        self.batch_settings, self.ppo, self.advantage = batch, ppo, advantage
        self.policy_optimizer, self.critic_optimizer = policy_optimizer, critic_optimizer
        self.aggregation = ppo.aggregation or spec.aggregation
        self.surrogate = spec.surrogate(ppo)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.policy = ControlPolicy(self.task, hidden)
            by_step = spec.critic == "token"
            self.critic = None if spec.critic == "none" else StateCritic(self.task, hidden, by_step)
        self.hidden, self._started = hidden, False
        self.results = ValidationResults((), torch.device("cpu"))
        self.register_buffer("iterations_done", torch.zeros((), dtype=torch.int64))
        if running_normalisation is not None:
            self.register_buffer("steps_seen", torch.tensor(running_normalisation))

    @property
    def iteration(self) -> int:
        """Iterations completed, saved with the weights; `current_epoch` lags behind it just after a resume."""
        return int(self.iterations_done)

    @property
    def evaluates_all_at_start(self) -> bool:
        """Always."""
        return True

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
        """Refuse what a trainer cannot do with this module; no callbacks of its own.

        Raises:
            InputError: several processes, an accelerator, or what `check_trainer` refuses.
        """
        trainer = self.trainer
        if trainer.world_size > 1 or trainer.strategy.root_device.type != "cpu":
            raise InputError("the control benchmark runs in one process on the CPU; give --accelerator cpu --devices 1")
        check_trainer(trainer, [self.policy_optimizer, self.critic_optimizer])
        return []

    def configure_model(self) -> None:
        """Make the start, unless a checkpoint follows, and the parts."""
        if self._trainer is None:  # in `load_from_checkpoint`
            return
        self.runtime = Runtime.of(self)
        self.timer = PhaseTimer(self.runtime.device, listeners(self.trainer))
        self.stop = StopControl(self.trainer, self.timer, lambda: self.iteration)
        if not self._started and self.trainer.ckpt_path is None:
            self._take(start_policy(self.environment, self.task, self.hidden, self.start, self.runtime.say))
        self._started = True
        common = (self.timer, self.stop)
        episodes = Episodes(self.environment, self.task, self.policy, self.seed, *common)
        self.collector = EpisodeCollector(
            episodes,
            self.policy,
            self.critic,
            self.spec,
            self.samples,
            self.batch_settings.minibatch_size,
            self.advantage,
            self.reward,
            *common,
        )
        self.evaluator = EpisodeEvaluator(episodes, self.held_out_samples, self.held_out_greedy, *common)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        """Start from these weights."""
        self.policy.load_state_dict(weights)
        self._share_normalisation()

    def _share_normalisation(self) -> None:
        """Have the critic normalise observations as the policy does."""
        if self.critic is not None:
            self.critic.normaliser.load_state_dict(self.policy.normaliser.state_dict())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the policy, and another for the critic if there is one."""
        policy = adamw(self.policy, self.policy_optimizer)
        return [policy] if self.critic is None else [policy, adamw(self.critic, self.critic_optimizer)]

    def on_train_start(self) -> None:
        """Create the updaters with the optimizers wrapped by Lightning."""
        optimizers = self.optimizers()
        wrapped = cast(list[torch.optim.Optimizer], optimizers if isinstance(optimizers, list) else [optimizers])
        common = (TokenBudget(NO_LIMIT), self.runtime, self.stop, run_folder(self.trainer))
        self.policy_updater = Updater("policy", self.policy, wrapped[0], self.policy_optimizer, *common)
        self.critic_updater = None
        if self.critic is not None:
            self.critic_updater = Updater("critic", self.critic, wrapped[1], self.critic_optimizer, *common)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, IterationProblems):
            states, episodes = data.problems_per_epoch, data.problems_per_epoch * self.samples
            steps = self.ppo.epochs * episodes // self.batch_settings.minibatch_size
            size = f"{states} initial states × {self.samples} = {episodes} episodes, {steps} steps"
            self.runtime.say(f"iteration: {size}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings."""
        save_settings(self, checkpoint)

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Intact[EpisodeBatch], batch_idx: int) -> None:
        """PPO epochs × minibatches over one iteration's episodes."""
        episodes = content(batch)
        iterations = self.trainer.max_epochs or 1
        updaters = {"policy": self.policy_updater, "critic": self.critic_updater}
        lrs = {f"{name}/lr": u.set_lr(self.iteration, iterations) for name, u in updaters.items() if u is not None}
        steps: list[Terms] = []
        plan = self.plan(episodes)
        with self.timer("update"):
            for i, rows in enumerate(plan):
                self.timer.report("updating", i, len(plan))
                self.stop.check(boundary=i == 0)
                step = self.critic_step(episodes, rows)
                if self.iteration >= self.ppo.critic_warmup:
                    step |= self.policy_step(episodes, rows)
                steps.append(step)
        seconds, values_of = self.timer.seconds.get("rollout", 0.0), "critic" if self.critic is not None else ""
        metrics = rollout_metrics(episodes, episodes.logprobs, seconds, values_of, self.iteration)
        if self.running_normalisation is not None:
            self._renormalise(episodes)
        self.iterations_done += 1
        own = {**self.timer.end_iteration(), "step": float(self.iteration)}
        self.log_dict({**metrics, **step_metrics(steps), **lrs, **own}, on_step=True, on_epoch=False, batch_size=1)

    def _renormalise(self, batch: EpisodeBatch) -> None:
        """Merge an iteration's observations into the mean and deviation with which the next is played and learned."""
        observations = batch.observations[response_mask(batch.response_lengths, batch.observations.shape[1])]
        self.policy.normaliser.update(observations, int(self.steps_seen))
        self.steps_seen += len(observations)
        self._share_normalisation()

    def plan(self, batch: EpisodeBatch) -> list[Tensor]:
        """Rows of every minibatch of every PPO epoch: random partitions, keyed by (seed, iteration)."""
        problems, size = len(batch) // self.samples, self.batch_settings.minibatch_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        return [
            rows for _ in range(self.ppo.epochs) for rows in shared_minibatches(problems, self.samples, size, generator)
        ]

    def critic_step(self, batch: EpisodeBatch, rows: Tensor) -> Terms:
        """One step of the critic on the mean loss over a minibatch's episodes, or over their steps."""
        if self.critic_updater is None:
            return {}
        loss = partial(self.critic_loss, batch)
        with self.timer(CRITIC):
            return self.critic_updater.step([rows], batch.lengths(), loss, CRITIC_TERMS, batch.contents)

    def critic_loss(self, batch: EpisodeBatch, rows: Tensor) -> Terms:
        """The critic's loss on a minibatch."""
        assert self.critic is not None and self.spec.critic_loss is not None
        piece = batch.select(rows)
        loss = self.spec.critic_loss(self.critic(piece.observations), piece.targets, piece.values, self.ppo.value_clip)
        mask = response_mask(piece.response_lengths, piece.observations.shape[1])
        mask = mask if loss.ndim == 2 else torch.ones_like(loss, dtype=torch.bool)
        return {"critic/loss": masked_sum(loss, mask) / mask.sum()}

    def policy_step(self, batch: EpisodeBatch, rows: Tensor) -> Terms:
        """One step of the policy on a minibatch; none if it is trained on none of its episodes."""
        rows = rows[batch.loss_mask[rows].any(dim=1)]
        if not len(rows):
            return {}
        loss = partial(self.policy_loss, batch)
        return self.policy_updater.step([rows], batch.lengths(), loss, POLICY_TERMS, batch.contents)

    def policy_loss(self, batch: EpisodeBatch, rows: Tensor) -> Terms:
        """The policy's loss on a minibatch."""
        piece = batch.select(rows)
        mask, tokens = piece.loss_mask, int(piece.loss_mask.sum())
        terms = self.policy(piece.observations, piece.actions)
        surrogate = self.surrogate(terms.logprobs, piece.logprobs, piece.advantages, mask)
        weights = token_weights(
            mask, self.aggregation, sequences=len(rows), tokens=tokens, norm_length=self.task.horizon
        )
        loss = masked_sum((surrogate.loss - self.ppo.entropy_coef * terms.entropy) * weights, mask)
        return policy_terms(loss, surrogate, terms.logprobs, terms.entropy, piece.logprobs, mask, tokens)

    # ----------------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.results = ValidationResults(validation_names(self.trainer), self.runtime.device)

    def validation_step(self, batch: Intact[Sequence[int]], batch_idx: int, dataloader_idx: int = 0) -> list[Scored]:  # type: ignore[override]
        """Play held-out episodes, for `validation_results`."""
        scored = self.evaluator.play(content(batch))
        self.results.update(dataloader_idx, scored)
        return scored

    def validation_results(self) -> dict[str, Result]:
        """Metrics of the running or latest validation: success rates of episodes."""
        return self.results.compute()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, ``val/accuracy`` among them."""
        if results := self.validation_results():
            self.log_dict({**flatten(results), "step": float(self.iteration)}, batch_size=1)
