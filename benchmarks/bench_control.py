"""Environment steps per second of the control benchmark against a plain loop over `env.step` of gymnasium.

Both with random actions, in turns in one process; episodes that have ended start again. Needs the extra control.

    python benchmarks/bench_control.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import gymnasium
import numpy as np

from sppo_lit.control.environments import ENVIRONMENTS, EnvironmentSpec

NAMES = {
    "cartpole": "CartPole-v1",
    "mountain_car": "MountainCarContinuous-v0",
    "hopper": "Hopper-v5",
    "lunar_lander": "LunarLander-v3",
    "pendulum": "Pendulum-v1",
}


def vector(spec: EnvironmentSpec, seconds: float) -> float:
    """Steps per second of a vector of as many episodes as an iteration has."""
    rng, environment, count = np.random.default_rng(0), spec.make(), spec.update
    environment.reset(range(count))
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        if spec.discrete:
            actions = rng.integers(spec.actions, size=count)
        else:
            actions = rng.uniform(-1, 1, (count, spec.actions)).astype(np.float32)
        ended = np.flatnonzero(environment.step(actions).ended)
        steps += count
        if len(ended):
            environment.reset(range(steps, steps + len(ended)), ended.tolist())
    return steps / (time.perf_counter() - start)


def plain(name: str, seconds: float) -> float:
    """Steps per second of one environment."""
    environment = gymnasium.make(NAMES[name]).unwrapped
    environment.reset(seed=0)
    environment.action_space.seed(0)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        _, _, ended, *_ = environment.step(environment.action_space.sample())
        steps += 1
        if ended:
            environment.reset()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    args = parser.parse_args()
    print("| environment | episodes at once | steps/s, vector | steps/s, plain loop | ratio (least to most) |")
    print("|---|---:|---:|---:|---:|")
    for name, spec in ENVIRONMENTS.items():
        pairs = [(vector(spec, args.seconds), plain(name, args.seconds)) for _ in range(args.rounds)]
        ratios = [ours / theirs for ours, theirs in pairs]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {spec.title} | {spec.update} | {ours:,.0f} | {theirs:,.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
