"""From initial states to a training batch: episodes, outcomes, values, advantages, as for responses to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sppo_lit.algorithms.batching import check_minibatch
from sppo_lit.algorithms.masking import response_mask
from sppo_lit.algorithms.specs import AlgorithmSpec
from sppo_lit.control.environments import EnvironmentSpec
from sppo_lit.control.networks import ControlPolicy, Played, StateCritic, play
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.settings import AdvantageSettings
from sppo_lit.training.estimates import estimates
from sppo_lit.training.metrics import GREEDY
from sppo_lit.training.stopping import StopControl
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Problem, Rollouts, Scored, TrainingBatch, Verdict


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch(TrainingBatch):
    """Episodes in the form of responses: an action is a token, the initial state the prompt.

    The ids of prompts and responses are zeros that only have the shape; what the networks read is here.

    Attributes:
        observations: [B, T, O] float32, before each step.
        actions: [B, T] int64, or [B, T, A] float32.
    """

    observations: Tensor
    actions: Tensor


HELD_OUT_USE = "validate"
"""Of the episodes of evaluations, the same at every one."""


def episode_keys(seed: int, use: str, name: str, states: Sequence[int], samples: Sequence[int]) -> list[int]:
    """Keys of the random numbers of episodes.

    Args:
        seed: seed of the run.
        use: what they are played for, e.g. ``train/3`` or `HELD_OUT_USE`.
        name: of the environment.
        states: seeds of the initial states.
        samples: index of each among the samples of its state.
    """
    return [sequence_key(seed, use, name, state, sample) for state, sample in zip(states, samples, strict=True)]


class Episodes:
    """Plays episodes of an environment with the present policy.

    Args:
        name: of the environment.
        spec: its row.
        policy: draws the actions.
        seed: seed of the run.
        timer: receives the progress.
        stop: stops the run on a signal.
    """

    def __init__(
        self, name: str, spec: EnvironmentSpec, policy: ControlPolicy, seed: int, timer: PhaseTimer, stop: StopControl
    ) -> None:
        self._name, self._spec, self._policy, self._seed = name, spec, policy, seed
        self._timer, self._stop = timer, stop
        self._environment = spec.make()

    @property
    def horizon(self) -> int:
        """Most steps of an episode."""
        return self._spec.horizon

    def play(self, states: Sequence[int], samples: Sequence[int], use: str, phase: str, boundary: bool) -> Played:
        """Play one episode for each state and sample.

        Args:
            states: seeds of the initial states.
            samples: index of each among the samples of its state; `GREEDY` in all takes the most likely actions.
            use: named in the key of the random numbers, e.g. ``train/3``.
            phase: name of the progress.
            boundary: the weights are those of the last finished iteration.
        """

        def on_step(steps: int) -> None:
            if steps % 50 == 0:
                self._stop.break_off(boundary)
                self._timer.report(phase, steps, self._spec.horizon)

        keys = episode_keys(self._seed, use, self._name, states, samples)
        greedy = all(sample == GREEDY for sample in samples)
        return play(self._environment, self._policy, states, None if greedy else keys, self._spec.horizon, on_step)

    def scored(self, states: Sequence[int], samples: Sequence[int], played: Played) -> list[Scored]:
        """The episodes with their verdicts, as callbacks show them and evaluations write them to disk."""
        rows = zip(states, samples, played.lengths.tolist(), played.successes.tolist(), strict=True)
        return [
            Scored(
                Problem(f"{self._name}/{state}", f"initial state {state}", self._spec.criterion, self._name),
                f"{steps} steps",
                steps,
                Verdict(success, "correct" if success else "wrong"),
                sample,
                finished=steps < self._spec.horizon,
            )
            for state, sample, steps, success in rows
        ]


class EpisodeCollector:
    """Makes the training batch of an iteration.

    Args:
        episodes: plays them.
        policy: its log-probabilities.
        critic: its values; None without.
        algorithm: the algorithm.
        samples: N, episodes from each initial state.
        minibatch_size: episodes of one optimizer step.
        advantage: how rewards become advantages.
        reward: the outcome at the end, or the shaped reward of every step.
        timer: measures phases.
        stop: stops the run on a signal.
    """

    def __init__(
        self,
        episodes: Episodes,
        policy: ControlPolicy,
        critic: StateCritic | None,
        algorithm: AlgorithmSpec,
        samples: int,
        minibatch_size: int,
        advantage: AdvantageSettings,
        reward: Literal["outcome", "dense"],
        timer: PhaseTimer,
        stop: StopControl,
    ) -> None:
        self._episodes, self._policy, self._critic = episodes, policy, critic
        self._algorithm, self._samples, self._minibatch_size = algorithm, samples, minibatch_size
        self._advantage, self._reward, self._timer, self._stop = advantage, reward, timer, stop

    def collect(self, states: Sequence[int], iteration: int) -> EpisodeBatch:
        """Play episodes with the current policy, and compute values and advantages.

        Args:
            states: seeds of the initial states.
            iteration: 0-based.

        Raises:
            InputError: the episodes cannot be cut into minibatches.
        """
        check_minibatch(len(states), self._samples, self._minibatch_size)
        repeated = [state for state in states for _ in range(self._samples)]
        samples = list(range(self._samples)) * len(states)
        greedy = None
        with self._stop.interruptible(boundary=True), self._timer("rollout"):
            played = self._episodes.play(repeated, samples, f"train/{iteration}", "sampling", True)
            if self._algorithm.greedy:
                greedy = self._episodes.play(states, [GREEDY] * len(states), "", "greedy baseline", True)
        with self._timer("values"), torch.no_grad():
            logprobs = self._policy(played.observations, played.actions).logprobs
            values = torch.zeros_like(played.successes)
            if self._critic is not None:
                values = self._algorithm.link(self._critic(played.observations))
        return self._batch(repeated, samples, played, greedy, logprobs, values, iteration)

    def _batch(
        self,
        states: Sequence[int],
        samples: Sequence[int],
        played: Played,
        greedy: Played | None,
        logprobs: Tensor,
        values: Tensor,
        iteration: int,
    ) -> EpisodeBatch:
        count, steps = played.observations.shape[:2]
        mask = response_mask(played.lengths, steps)
        values = torch.where(mask, values, 0.0) if values.ndim == 2 else values
        dense = self._reward == "dense"
        paid = torch.zeros_like(played.successes) if dense else played.successes
        rollouts = Rollouts(
            prompt_ids=torch.zeros(count, 1, dtype=torch.int64),
            prompt_lengths=torch.ones(count, dtype=torch.int64),
            response_ids=torch.zeros(count, steps, dtype=torch.int64),
            response_lengths=played.lengths,
            logprobs=torch.where(mask, logprobs, 0.0),
            versions=torch.full((count,), iteration),
            rewards=paid,
            labels=paid,
            greedy_rewards=None if greedy is None else greedy.successes.repeat_interleave(self._samples),
            scored=self._episodes.scored(states, samples, played),
            sampled_tokens=int(played.lengths.sum()) + (0 if greedy is None else int(greedy.lengths.sum())),
            sampled_sequences=count + (0 if greedy is None else len(greedy.lengths)),
        )
        costs = -played.dense if dense else None
        usable = torch.ones(count, dtype=torch.bool)
        own = estimates(self._algorithm, self._advantage, self._samples, rollouts, values, usable, costs, costs)
        return EpisodeBatch(
            **{**vars(rollouts), "labels": played.successes, "rewards": played.dense.sum(dim=1) if dense else paid},
            **own._asdict(),
            values=values,
            reference=None,
            bad_values=0,
            observations=played.observations,
            actions=played.actions,
        )


class EpisodeEvaluator:
    """Plays held-out episodes: with the most likely actions, and with drawn ones.

    Args:
        episodes: plays them.
        samples: episodes with drawn actions from each initial state.
        greedy: also one with the most likely actions.
        timer: receives the progress.
        stop: stops the run on a signal.
    """

    def __init__(self, episodes: Episodes, samples: int, greedy: bool, timer: PhaseTimer, stop: StopControl) -> None:
        self._episodes, self._samples, self._greedy = episodes, samples, greedy
        self._timer, self._stop = timer, stop

    def play(self, states: Sequence[int]) -> list[Scored]:
        """All episodes from some initial states; the same random numbers at every evaluation."""
        rounds = [[GREEDY]] if self._greedy else []
        rounds += [list(range(self._samples))] if self._samples else []
        scored: list[Scored] = []
        with self._stop.interruptible(boundary=False):
            for samples in rounds:
                repeated = [state for state in states for _ in samples]
                indices = samples * len(states)
                played = self._episodes.play(repeated, indices, HELD_OUT_USE, "evaluating", False)
                scored += self._episodes.scored(repeated, indices, played)
        return scored
