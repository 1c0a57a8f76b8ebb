"""The first two stages of the paper's benchmark: an expert by shaped rewards, and a weak clone of its successes.

Both are kept on disk under the hash of all that they depend on, and are the same for every algorithm and seed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from sppo_lit.control.environments import EXTRA, EnvironmentSpec
from sppo_lit.control.networks import ControlPolicy, play
from sppo_lit.control.settings import CloningSettings, ExpertSettings, StartSettings
from sppo_lit.errors import InputError
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.utils.files import written_whole

Say = Callable[[str], None]

PPO_ARGUMENTS = {"n_steps": 128, "batch_size": 512, "n_epochs": 10, "gamma": 0.99, "learning_rate": 1e-3}
HIDDEN = (64, 64)
FIRST_DEMONSTRATION, FIRST_MEASURED = 1_000_000_000, 1_100_000_000
"""Seeds of initial states, apart from those of training and evaluation."""


def start_policy(name: str, spec: EnvironmentSpec, hidden: Sequence[int], settings: StartSettings, say: Say) -> Tensors:
    """Weights of the policy that reinforcement learning starts from; made if they are not in the cache.

    Args:
        name: of the environment.
        spec: its row.
        hidden: sizes of the policy's hidden layers.
        settings: of both stages.
        say: prints a line.

    Raises:
        InputError: the expert or its clone never succeeds, or an extra is missing.
    """
    folder, depends = Path(settings.cache), {"environment": name, "seed": settings.seed}
    depends |= {"horizon": spec.horizon, "criterion": spec.criterion, "expert": asdict(settings.expert)}
    shown = folder / f"{name}-expert-{_hash(depends)}.npz"
    if not shown.is_file():
        _save_demonstrations(shown, name, spec, settings.expert, settings.seed, say)
    depends |= {"cloning": asdict(settings.cloning), "hidden": list(hidden)}
    file = folder / f"{name}-start-{_hash(depends)}.pt"
    if not file.is_file():
        with np.load(shown) as data:
            observations, actions = torch.from_numpy(data["observations"]), torch.from_numpy(data["actions"])
        policy, rate = clone(spec, hidden, observations, actions, settings.cloning, settings.seed, say)
        with written_whole(file) as temporary:
            torch.save({"policy": policy.state_dict(), "success": rate, "made_from": depends}, temporary)
    content = torch.load(file, weights_only=True)
    say(f"start: {file} succeeds in {content['success']:.1%} of episodes ({spec.criterion})")
    return content["policy"]


Tensors = Mapping[str, Tensor]


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------------- expert


def _save_demonstrations(
    file: Path, name: str, spec: EnvironmentSpec, settings: ExpertSettings, seed: int, say: Say
) -> None:
    """Train the expert, play, and save the transitions of its successes; the expert itself is saved beside them.

    Raises:
        InputError: no episode succeeded.
    """
    say(f"expert: PPO of stable-baselines3 on {spec.title}, {settings.steps:,} steps with shaped rewards, seed {seed}")
    with isolate_rng():  # stable-baselines3 seeds the global generators
        act, save = train_expert(spec, settings, seed)
        observations, actions, successes = _record(spec, act, settings.episodes)
    say(f"expert: {int(successes.sum())} of {settings.episodes} episodes succeed")
    if not successes.any():
        raise InputError(
            f"expert: none of its {settings.episodes} episodes of {name} succeeded after {settings.steps:,} steps; "
            "raise model.start.expert.steps, or change model.start.expert.ppo"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file.with_suffix(".zip"))
    with written_whole(file) as temporary, temporary.open("wb") as opened:
        np.savez_compressed(opened, observations=observations, actions=actions, successes=successes)


def train_expert(
    spec: EnvironmentSpec, settings: ExpertSettings, seed: int
) -> tuple[Callable[[Any], Any], Callable[[Path], None]]:
    """Train PPO of stable-baselines3, with its normalisation of observations and returns.

    Returns:
        observations [B, O] -> actions, drawn; and a function that saves it.

    Raises:
        InputError: stable-baselines3 is not installed, or does not take `settings.ppo`.
    """
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import VecNormalize

        importlib.import_module("gymnasium")  # for `vector_env`
    except ImportError as error:
        raise InputError(f"the expert needs stable-baselines3 and gymnasium: {EXTRA}") from error
    arguments = {**PPO_ARGUMENTS, **settings.ppo}
    normalised = VecNormalize(vector_env(spec, settings.parallel, seed), gamma=arguments["gamma"])
    try:
        model = PPO("MlpPolicy", normalised, seed=seed, device="cpu", **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"model.start.expert.ppo: {error}; see PPO of stable-baselines3") from error
    model.learn(settings.steps)
    normalised.training = False

    def act(observations: Any) -> Any:
        return model.predict(normalised.normalize_obs(observations), deterministic=False)[0]

    return act, model.save


def vector_env(spec: EnvironmentSpec, count: int, seed: int) -> Any:
    """Episodes with shaped rewards as a `VecEnv` of stable-baselines3; those that ended start again."""
    from gymnasium import spaces
    from stable_baselines3.common.vec_env import VecEnv

    observations = spaces.Box(-np.inf, np.inf, (spec.observations,))
    # Wider than the range that the environments clip to themselves.
    actions = spaces.Discrete(spec.actions) if spec.discrete else spaces.Box(-10.0, 10.0, (spec.actions,))

    class Episodes(VecEnv):
        def __init__(self) -> None:
            super().__init__(count, observations, actions)
            self.environment, self.next_seed = spec.make(), seed * 10_000_000
            self.steps = np.zeros(count, dtype=np.int64)
            self.returns = np.zeros(count)

        def _fresh(self, number: int) -> range:
            self.next_seed += number
            return range(self.next_seed - number, self.next_seed)

        def reset(self) -> Any:
            self.steps[:] = 0
            return self.environment.reset(self._fresh(count))

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            observed, dense, ended = self.environment.step(self.actions)
            self.steps += 1
            self.returns += dense
            over = ended | (self.steps >= spec.horizon)
            infos: list[dict[str, Any]] = [{} for _ in range(count)]
            rows = np.flatnonzero(over)
            for row in rows:
                infos[row] = {
                    "terminal_observation": observed[row],
                    "TimeLimit.truncated": not ended[row],
                    "episode": {"r": self.returns[row], "l": self.steps[row], "t": 0.0},
                }
            if len(rows):
                observed = self.environment.reset(self._fresh(len(rows)), rows.tolist())
                self.steps[rows], self.returns[rows] = 0, 0.0
            return observed, dense, over, infos

        def close(self) -> None: ...

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * count  # no render mode

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return []

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * count

    return Episodes()


def _record(
    spec: EnvironmentSpec, act: Callable[[Any], Any], episodes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transitions of an expert's successes, [N, O] and [N] or [N, A]; and [episodes], which episodes these are."""
    environment = spec.make()
    observed = environment.reset(range(FIRST_DEMONSTRATION, FIRST_DEMONSTRATION + episodes))
    ended, seen = np.zeros(episodes, dtype=bool), []
    for _ in range(spec.horizon):
        actions = act(observed)
        seen.append((observed, actions, ~ended))
        observed, _, ended = environment.step(actions)
        if ended.all():
            break
    successes = environment.succeeded()
    observations, actions, lasting = (np.stack(column, axis=1) for column in zip(*seen, strict=True))
    kept = lasting & successes[:, None]
    return observations[kept], actions[kept], successes


# ------------------------------------------------------------------------------------------------------------ cloning


def clone(
    spec: EnvironmentSpec,
    hidden: Sequence[int],
    observations: Tensor,
    actions: Tensor,
    settings: CloningSettings,
    seed: int,
    say: Say,
) -> tuple[ControlPolicy, float]:
    """Imitate successful transitions until the drawn actions succeed often enough.

    Where a part of the training carries the rate too far beyond its target, it is taken back and repeated in halves.

    Args:
        spec: the environment.
        hidden: sizes of the hidden layers.
        observations: [N, O].
        actions: [N] int64, or [N, A].
        settings: target rate and training.
        seed: of initial weights and minibatches.
        say: prints a line.

    Returns:
        The policy, and its success rate.

    Raises:
        InputError: there is nothing to imitate, or the policy never succeeds.
    """
    if not len(observations):
        raise InputError("cloning: no success of the expert to imitate; raise model.start.expert.steps or episodes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = ControlPolicy(spec, hidden)
    policy.normaliser.fit(observations)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.lr)
    done, part, best, rate = 0, settings.every, 0.0, 0.0
    while done < settings.steps:
        before = (_copied(policy.state_dict()), _copied(optimizer.state_dict()))
        for step in range(done, done + part):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(observations), (settings.minibatch,), generator=generator)
            optimizer.zero_grad()
            (-policy(observations[rows], actions[rows]).logprobs.mean()).backward()
            optimizer.step()
        rate = success_rate(spec, policy, settings.episodes, seed)
        best = max(best, rate)
        if rate > settings.success + settings.tolerance and part > 1:
            policy.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
            part //= 2
            continue
        done += part
        if rate >= settings.success:
            break
    if not best:
        raise InputError(
            f"cloning: the clone never succeeds in {done:,} steps; raise model.start.cloning.steps or "
            "model.start.expert.episodes"
        )
    if rate < settings.success:
        say(f"cloning: {rate:.1%} instead of {settings.success:.1%} after all {done:,} steps (best {best:.1%})")
    return policy, rate


def success_rate(spec: EnvironmentSpec, policy: ControlPolicy, episodes: int, seed: int = 0) -> float:
    """Share of successes in episodes of their own initial states, with drawn actions."""
    seeds = range(FIRST_MEASURED, FIRST_MEASURED + episodes)
    keys = [sequence_key(seed, "measured", i) for i in seeds]
    return float(play(spec.make(), policy, seeds, keys, spec.horizon).successes.mean())


def _copied(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _copied(value) for key, value in content.items()}
    return content.clone() if isinstance(content, Tensor) else content
