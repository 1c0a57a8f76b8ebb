"""``sppo score DATASET --critic PATH``: how likely a run's policy is to solve each problem, as its critic sees it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from sppo_lit.cli.messages import one_line
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic
from sppo_lit.models.loading import load_critic, load_tokenizer
from sppo_lit.problems.procedural import procedural
from sppo_lit.problems.prompts import encode_problems
from sppo_lit.settings import ModelSource
from sppo_lit.study.figures.calibration import measure, table
from sppo_lit.study.responses import Record, read
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.datamodule import MathDataModule, ProblemSet
from sppo_lit.training.passes import ValueReader
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.selection import prompts_alone
from sppo_lit.training.timing import PhaseTimer
from sppo_lit.types import Encoded, Problem
from sppo_lit.utils.command import CommandParser
from sppo_lit.utils.console import console, is_interactive
from sppo_lit.utils.files import written_whole

NUMBERS = ("base_rate", "pearson", "spearman", "brier", "brier_base_rate", "ece", "auroc")
"""Of `measure`, as printed."""


def score(arguments: Sequence[str]) -> int:
    """Write the predicted success of every problem, and print how well it predicts outcomes if there are any.

    Args:
        arguments: command-line arguments after ``sppo score``.

    Raises:
        InputError: problems, critic, recipe or outcomes cannot be read, or do not belong together.
    """
    args = options(arguments)
    data, source = data_of(args), ModelSource(args.critic)
    tokenizer = load_tokenizer(source)
    critic = ScalarCritic(load_critic(source, tokenizer, "scalar"))
    if not critic.model.get_parameter("score.weight").any():
        raise InputError(
            f"critic {args.critic}: it has no trained value head for prompts; give RUN/hf/critic of a run of "
            "Sequence-Level PPO"
        )
    encoded = prompts(data, args, tokenizer)
    answered = [] if args.outcomes is None else outcomes(args.outcomes, encoded)
    predicted = list(zip((problem for problem, _ in encoded), values(critic, encoded, args.tokens), strict=True))
    if args.sort:
        predicted.sort(key=lambda pair: -pair[1])
    try:
        with written_whole(args.out) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(json.dumps(line_of(*pair), ensure_ascii=False) + "\n" for pair in predicted)
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}; give another --out") from error
    mean = sum(value for _, value in predicted) / len(predicted)
    console.print(f"{args.out}: {len(predicted):,} problems, mean V {mean:.3f}", markup=False, soft_wrap=True)
    if answered:
        console.print(calibration(predicted, answered, args.outcomes), markup=False, soft_wrap=True)
    return 0


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line: dataset, critic, recipe, out, outcomes, sort, split, limit, tokens.

    Raises:
        InputError: an unknown flag, or a missing or bad value.
    """
    about = "Write how likely a run's policy is to solve each problem, as its critic sees it."
    parser = CommandParser(prog="sppo score", description=about)
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a name such as gsm8k, a Hub id, a file, a folder or FILE.py:FUNCTION")
    add("--critic", required=True, metavar="PATH", help="critic of a run: RUN/hf/critic, or its Hub id")
    add("--recipe", type=Path, metavar="FILE", help="recipe whose prompts the critic knows; default: RUN/config.yaml")
    add("--out", type=Path, default=Path("scores.jsonl"), metavar="FILE", help="default: scores.jsonl")
    add("--sort", action="store_true", help="the easiest first, instead of the order of the data set")
    add("--outcomes", type=Path, metavar="FILE", help="responses of 'sppo run validate' to compare with, or that run")
    add("--split", metavar="S", help="split to read")
    add("--limit", type=int, metavar="N", help="read at most N problems")
    add("--tokens", type=int, default=16384, metavar="N", help="most tokens of one pass; default: 16384")
    args = parser.parse_args(list(arguments))
    if args.tokens < 1:
        raise InputError(f"score: --tokens is {args.tokens}; it must be at least 1")
    if procedural(args.dataset) and args.limit is None:
        raise InputError(f"score: {args.dataset} has no end; give --limit N")
    return args


def data_of(args: argparse.Namespace) -> MathDataModule:
    """The data module of `--recipe`, or of the run that the critic lies in, with the data set to score as `train`.

    Where the recipe names the data set, it is read with the settings there; else with the prompts of its training set.

    Raises:
        InputError: the recipe cannot be read.
    """
    critic, recipe = Path(args.critic).resolve(), args.recipe
    own = critic.parent.parent / "config.yaml"
    if recipe is None and critic.is_dir() and own.is_file():
        recipe = own
    content: Mapping[str, Any] = {}
    if recipe is not None:
        try:
            content = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{recipe}: not a recipe with the key data ({one_line(error)})") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MathDataModule, "data")
    try:
        data: MathDataModule = parser.instantiate_classes(parser.parse_object({"data": content})).data
    except ArgumentError as error:
        raise InputError(f"{recipe}: {one_line(error)}") from error
    default = "with default settings: there is no config.yaml of a run around the critic (--recipe FILE names one)"
    console.print(f"prompts: {default if recipe is None else f'as in {recipe}'}", markup=False, soft_wrap=True)
    alike = (known for known in (data.train, *data.val) if known.path == args.dataset)
    known = next(alike, ProblemSet(args.dataset, prompt=data.train.prompt))
    data.train = replace(known, split=args.split or known.split, limit=args.limit, streaming=False, skip_bad_rows=True)
    return data


def prompts(data: MathDataModule, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The problems with their prompt ids; prompts that are too long for the recipe are left out and counted.

    Raises:
        InputError: the problems cannot be read, or all prompts are too long.
    """
    prompt = data.prompt_of(data.train)
    if generated := procedural(args.dataset):
        problems, suffixes = data.generated(generated, data.train, args.limit, "train")
    else:
        source = data.open_source(data.train)
        problems, suffixes = source.problems(), source.suffixes
    examples = prompt.turns(max(suffixes, key=suffixes.__getitem__, default=""))
    encoded, long = encode_problems(problems, tokenizer, data.max_prompt_tokens, prompt.system, examples)
    if long:
        console.print(f"left out: {long:,} prompts of more than {data.max_prompt_tokens:,} tokens")
    return encoded


def values(critic: ScalarCritic, encoded: Sequence[Encoded], tokens: int) -> list[float]:
    """V of each problem, in [0, 1], on a GPU if there is one; with a progress bar.

    Args:
        critic: the critic.
        encoded: problems with their prompt ids.
        tokens: most tokens of a pass, padding included.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=console, transient=True, disable=not is_interactive(console)) as progress:
        task = progress.add_task("critic", total=None)

        def show(phase: str, done: int, total: int, facts: Mapping[str, float]) -> None:
            progress.update(task, completed=done, total=total)

        timer, runtime = PhaseTimer(device, [show]), Runtime.single(device)
        reader = ValueReader(critic.to(device), torch.sigmoid, TokenBudget(tokens), runtime, timer)
        read: list[float] = reader.read(prompts_alone([ids for _, ids in encoded], device)).tolist()
    return read


def line_of(problem: Problem, value: float) -> dict[str, object]:
    """A problem and its predicted success as one JSON object, which is also a row of a file of problems."""
    known = {} if problem.level is None else {"level": problem.level}
    row = {"key": problem.key, "value": round(value, 6), **known}
    return {**row, "problem": problem.prompt, "answer": problem.answer}


def outcomes(source: Path, encoded: Sequence[Encoded]) -> list[Record]:
    """Responses of an evaluation to prompts that are scored.

    Args:
        source: a file of an evaluation, or its run.
        encoded: the problems that are scored.

    Raises:
        InputError: no such evaluation, or no response is to one of the prompts.
    """
    scored = {problem.prompt for problem, _ in encoded}
    answered = [record for record in read(source) if record.get("prompt") in scored]
    if not answered:
        raise InputError(
            f"{source}: no response in it is to a prompt that is scored; give an evaluation of the same problems with "
            "the same data.prompt"
        )
    return answered


def calibration(predicted: Sequence[tuple[Problem, float]], answered: Sequence[Record], source: Path) -> str:
    """One line: how well predictions agree with outcomes of the same prompts.

    Args:
        predicted: problems with V.
        answered: responses to some of them.
        source: where the responses are from.
    """
    of_prompt = {problem.prompt: value for problem, value in predicted}
    numbers = measure(*table([{**r, "value": of_prompt[r["prompt"]]} for r in answered], source))
    parts = ", ".join(f"{name.replace('_', ' ')} {numbers[name]:.3f}" for name in NUMBERS)
    return f"against {numbers['problems']:,} problems × {numbers['k']} responses: {parts}"
