"""Our token-level PPO against PPO of stable-baselines3, both on the shaped reward of an environment, from scratch.

The same network shapes, batches, epochs, learning rate, γ, λ and number of environment steps, both with running
normalisation of observations; each normalises advantages its own way, and stable-baselines3 returns too. Printed is the
mean sum of shaped rewards of whole episodes with drawn actions. Needs the extra control.

    python benchmarks/control_ppo.py --environment cartpole --seeds 5
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile

import lightning.pytorch as pl
import numpy as np
import torch

from sppo_lit.callbacks.clock import Clock
from sppo_lit.control import module as control
from sppo_lit.control.datamodule import ControlDataModule
from sppo_lit.control.environments import ENVIRONMENTS, EnvironmentSpec
from sppo_lit.control.expert import FIRST_MEASURED, vector_env
from sppo_lit.control.networks import ControlPolicy, play
from sppo_lit.rollout.randomness import sequence_key
from sppo_lit.settings import AdvantageSettings, BatchSettings, OptimizerSettings, PPOSettings

GAMMA, LAM, LR, EPOCHS, MINIBATCHES = 0.99, 0.95, 1e-3, 10, 4
MEASURED = range(FIRST_MEASURED, FIRST_MEASURED + 128)
"""Seeds of the initial states of the episodes measured."""


def ours(name: str, seed: int, steps: int, episodes: int) -> float:
    """Final return of our PPO after so many environment steps, in iterations of whole episodes, which may end early."""
    pl.seed_everything(seed, verbose=False)
    spec = ENVIRONMENTS[name]
    fresh = ControlPolicy(spec, (64, 64))
    control.start_policy = lambda *_: fresh.state_dict()  # from scratch, without the first two stages
    module = control.ControlModule(
        name,
        "ppo",
        reward="dense",
        running_normalisation=1,
        batch=BatchSettings(minibatch_size=episodes // MINIBATCHES),
        ppo=PPOSettings(epochs=EPOCHS, dual_clip=None, value_clip=math.inf),
        advantage=AdvantageSettings(gamma=GAMMA, lam=LAM),
        policy_optimizer=OptimizerSettings(lr=LR, eps=1e-5, clip_norm=0.5),
        critic_optimizer=OptimizerSettings(lr=LR, eps=1e-5, clip_norm=0.5),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            callbacks=[Clock(max_tokens=steps)],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule=ControlDataModule(problems_per_epoch=episodes))
    keys = [sequence_key(seed, state) for state in MEASURED]
    return float(play(spec.make(), module.policy, MEASURED, keys, spec.horizon).dense.sum(dim=1).mean())


def theirs(spec: EnvironmentSpec, seed: int, steps: int, episodes: int) -> float:
    """Final return of stable-baselines3's PPO after so many environment steps."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecNormalize

    env = VecNormalize(vector_env(spec, episodes, seed), gamma=GAMMA)
    size = episodes * spec.horizon // MINIBATCHES
    model = PPO(
        "MlpPolicy",
        env,
        seed=seed,
        device="cpu",
        n_steps=spec.horizon,
        batch_size=size,
        n_epochs=EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAM,
        learning_rate=LR,
    )
    model.learn(steps)
    env.training = False
    environment, ended = spec.make(), np.zeros(len(MEASURED), dtype=bool)
    observed, total = environment.reset(MEASURED), np.zeros(len(MEASURED))
    for _ in range(spec.horizon):
        observed, dense, ended = environment.step(model.predict(env.normalize_obs(observed), deterministic=False)[0])
        total += dense
        if ended.all():
            break
    return float(total.mean())


def main() -> None:
    """Train both with each seed in turns, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="cartpole", choices=tuple(ENVIRONMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=30, help="of stable-baselines3, in steps of whole episodes")
    parser.add_argument("--episodes", type=int, default=16, help="at once, and of an iteration of ours")
    args = parser.parse_args()
    torch.set_num_threads(1)
    spec, out = ENVIRONMENTS[args.environment], []
    print("| seed | ours | stable-baselines3 |\n|---:|---:|---:|")
    steps = args.iterations * args.episodes * spec.horizon
    for seed in range(1, args.seeds + 1):
        mine = ours(args.environment, seed, steps, args.episodes)
        peer = theirs(spec, seed, steps, args.episodes)
        out.append((mine, peer))
        print(f"| {seed} | {mine:.1f} | {peer:.1f} |", flush=True)
    columns = list(zip(*out, strict=True))
    ends = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in columns] if len(out) > 1 else ["", ""]
    print(f"| mean ± std | {ends[0]} | {ends[1]} |")


if __name__ == "__main__":
    main()
