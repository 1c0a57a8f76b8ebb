"""Seconds of a training iteration, side by side with TRL: the same model, problems, lengths, rewards, optimizer steps.

Every round trains each contender for some iterations, in turns in one process; the first iteration is left out. TRL's
rewards come from our judging processes. At equal prompts GRPO samples eight responses where Sequence-Level PPO has one.
Peak memory is that of a process of its own for each contender. Needs the extra bench.

    python benchmarks/bench_iteration.py --threads 1 --rounds 3
    python benchmarks/bench_iteration.py --threads 1 --rounds 3 --policy FOLDER --problems svamp/train.jsonl \\
      --prompts 64 --minibatch 16 --max-new-tokens 128
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import transformers
from datasets import Dataset
from lightning.pytorch.callbacks import Callback
from trl import GRPOConfig, GRPOTrainer

import sppo_lit as sl
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.problems.sources import open_problems
from sppo_lit.rewards.verifiers import make_verifier
from sppo_lit.types import Problem
from sppo_lit.utils.peak_memory import peak_mib

TASK = sl.ArithmeticTask(max_operations=5, largest=50)
GROUP = 8
HALF_WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
"""Of the quickstart's model; as a critic it is as good (docs/results.md)."""
LR = 1e-4
SMALL = "data/arithmetic/warmstart"
PHASES = ("rollout", "verify", "values", "critic", "update")


class Contender(NamedTuple):
    """One side of a comparison: P prompts × N responses an iteration."""

    title: str
    algorithm: str | None  # None: TRL's GRPO
    prompts: int
    samples: int
    critic: sl.ModelSource | None = None  # None: as the policy


class Measured(NamedTuple):
    """Seconds of every iteration but the first, and of its phases."""

    iterations: list[float]
    phases: dict[str, list[float]]


class Stopwatch(Callback):
    """Time between ends of iterations, and the phases that the module logs."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]
        self.phases: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        for name in PHASES:
            self.phases[name].append(float(trainer.callback_metrics.get(f"time/{name}", 0.0)))

    def measured(self) -> Measured:
        times = [b - a for a, b in pairwise(self.ends[1:])]
        return Measured(times, {name: values[1:] for name, values in self.phases.items()})


def problems_of(args: argparse.Namespace) -> list[Problem]:
    """The problems of training, as many as the largest iteration has in all of them."""
    count = args.prompts * args.iterations
    if args.problems == "arithmetic":
        return [TASK.problem(i) for i in range(count)]
    found = open_problems(args.problems).problems()
    return [found[i % len(found)] for i in range(count)]


def ours(contender: Contender, args: argparse.Namespace, folder: str) -> Measured:
    """Train with this project."""
    pl.seed_everything(1)
    assert contender.algorithm is not None
    module = sl.SPPOModule(
        sl.ModelSource(args.policy),
        critic=contender.critic,
        algorithm=contender.algorithm,
        sampling=sl.Sampling(temperature=1.0, max_new_tokens=args.max_new_tokens),
        batch=sl.BatchSettings(contender.samples, args.minibatch),
        ppo=sl.PPOSettings(old_logprobs="sampler"),
        policy_optimizer=sl.OptimizerSettings(lr=LR),
        critic_optimizer=sl.OptimizerSettings(lr=LR),
        memory=sl.MemorySettings(micro_batch_tokens=args.micro_batch_tokens),
    )
    data = sl.MathDataModule(
        sl.ProblemSet(args.problems),
        arithmetic=TASK,
        problems_per_epoch=contender.prompts,
        max_prompt_tokens=args.max_prompt_tokens,
    )
    watch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=args.iterations,
        log_every_n_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[watch],
    )
    trainer.fit(module, data)
    return watch.measured()


def theirs(contender: Contender, args: argparse.Namespace, folder: str) -> Measured:
    """Train with TRL's GRPO."""
    source, steps = sl.ModelSource(args.policy), args.prompts // args.minibatch
    tokenizer = load_tokenizer(source)
    verifier = make_verifier(sl.VerifierSettings(), [])
    chat = tokenizer.chat_template is not None
    problems = problems_of(args)[: contender.prompts * args.iterations]
    rows = [
        {"prompt": [{"role": "user", "content": p.prompt}] if chat else p.prompt, "answer": p.answer} for p in problems
    ]
    phases: dict[str, float] = defaultdict(float)

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [c[-1]["content"] if chat else c for c in completions]
        return [verdict.reward for verdict in verifier.score(texts, answer)]

    sequences = contender.prompts * contender.samples
    device_batch = min(args.minibatch, sequences // steps)
    config = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        num_generations=contender.samples,
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=sequences // steps // device_batch,
        steps_per_generation=sequences // device_batch,
        max_steps=steps * args.iterations,
        max_completion_length=args.max_new_tokens,
        temperature=1.0,
        top_k=0,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=0.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    ends = [time.perf_counter()]
    logged: dict[str, list[float]] = {name: [] for name in PHASES}

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % steps:
                return
            ends.append(time.perf_counter())
            whole = ends[-1] - ends[-2]
            phases["update"] = whole - phases["rollout"] - phases["verify"]
            for name in PHASES:
                logged[name].append(phases.pop(name, 0.0))

    trainer = GRPOTrainer(
        model=load_causal_lm(source, tokenizer),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Ends()],
    )

    def timed(name: str, method: str) -> None:
        call: Callable[..., Any] = getattr(trainer, method)

        def measured(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                phases[name] += time.perf_counter() - start

        setattr(trainer, method, measured)

    timed("rollout", "_generate")
    timed("verify", "_calculate_rewards")
    try:
        trainer.train()
    finally:
        verifier.close()
    times = [b - a for a, b in pairwise(ends[1:])]
    return Measured(times, {name: values[1:] for name, values in logged.items()})


def measure(contender: Contender, args: argparse.Namespace) -> Measured:
    """One training of a contender."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        return (theirs if contender.algorithm is None else ours)(contender, args, folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of both programs."""
    with open(os.devnull, "w") as null, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, sys.stdout = sys.stdout, null
        try:
            yield
        finally:
            sys.stdout = out


def peak(index: int, argv: list[str]) -> float:
    """MiB of a process that trains only this contender, for two iterations."""
    command = [sys.executable, __file__, *argv, "--only", str(index), "--iterations", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--policy", default=SMALL)
    parser.add_argument("--problems", default="arithmetic")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--minibatch", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--max-prompt-tokens", type=int, default=256)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    p, small = args.prompts, args.prompts // GROUP
    contenders = [
        Contender("Sequence-Level PPO", "sppo", p, 1),
        Contender("GRPO", "grpo", small, GROUP),
        Contender("TRL GRPO, equal prompts", None, p, GROUP),
        Contender("TRL GRPO, equal sequences", None, small, GROUP),
    ]
    pairs = [(0, 2), (1, 3), (0, 3)]
    if args.policy == SMALL:
        critic = sl.ModelSource("data/arithmetic/base", init="random", config=HALF_WIDTH)
        contenders.append(Contender("Sequence-Level PPO, critic of half the width", "sppo", p, 1, critic))
        pairs += [(4, 2), (4, 3)]
    if args.only is not None:
        measure(contenders[args.only], args)
        print(peak_mib(torch.device("cpu")))
        return
    seconds: dict[str, list[float]] = defaultdict(list)
    phases: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(args.rounds):
        for contender in contenders:
            result = measure(contender, args)
            seconds[contender.title].append(statistics.median(result.iterations))
            for name, values in result.phases.items():
                phases[contender.title][name] += values
            print(f"round {round_ + 1}: {contender.title} {seconds[contender.title][-1]:.2f} s", file=sys.stderr)
    print(
        "| | prompts × responses | seconds an iteration | sampling | judging | values | critic | update | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for i, c in enumerate(contenders):
        parts = " | ".join(f"{statistics.median(phases[c.title][name]):.2f}" for name in PHASES)
        times = seconds[c.title]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        print(f"| {c.title} | {c.prompts} × {c.samples} | {spread} | {parts} | {peak(i, sys.argv[1:]):,.0f} MiB |")
    print("\n| against | | median ratio | least to most |\n|---|---|---|---|")
    for fast, slow in pairs:
        a, b = contenders[fast].title, contenders[slow].title
        ratios = [y / x for x, y in zip(seconds[a], seconds[b], strict=True)]
        print(f"| {b} | {a} | {statistics.median(ratios):.1f}× | {min(ratios):.1f} to {max(ratios):.1f} |")


if __name__ == "__main__":
    main()
