"""The command line: `lightning run RECIPE`, `sppo …`. A thin layer over LightningCLI.

A recipe is a plain LightningCLI YAML; every `--trainer.*`, `--model.*`, `--data.*` overrides it. A user's mistake
prints one line and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EACCES, EDQUOT, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_lit import __version__
from sppo_lit.cli import SHORT_FLAGS, STAGES
from sppo_lit.distributed import processes
from sppo_lit.errors import InputError, SharedError, Stopped
from sppo_lit.utils.cores import share_cores
from sppo_lit.utils.paths import find

if TYPE_CHECKING:
    from jsonargparse import Namespace

YAML = (".yaml", ".yml")

UNWRITABLE = (EACCES, EDQUOT, EEXIST, EISDIR, ENOSPC, ENOTDIR, EPERM, EROFS)
"""Errors of the place that a user has named, or of its disk."""

USAGE = """\
usage: {name} run [fit|validate] RECIPE [--flag value …]
       {name} list
       {name} doctor RECIPE [--no-load] [--memory GIB] [--problems N]
                     [--flag value …]
       {name} audit DATASET [--completions FILE] [--accepted FILE]
                     [--json FILE] [--split S] [--limit N]
       {name} study FILE [--seeds N,N] [--only CELL,CELL] [--report]
       {name} figure NAME [SOURCE …] [--out FILE]
       {name} score DATASET --critic PATH [--out FILE] [--sort]
                     [--outcomes FILE] [--split S] [--limit N]
       {name} convert CHECKPOINT FILE
       {name} push RUN --repo NAME [--private] [--license ID]

run          trains (fit, the default) or evaluates a checkpoint (validate)
list         shows the recipes and what each is for
doctor       checks a recipe's models, data, memory and disk before a long run
audit        checks the gold answers of a data set and saved verdicts
study        runs a grid of algorithms and seeds, and reports on it
figure       draws one figure from runs or evaluations
score        writes how likely a run's policy is to solve each problem
convert      writes a sharded run's checkpoint to one file
push         uploads a run's policy and critic to the Hugging Face Hub
--version    shows the version
A command may also follow run, e.g. '{name} run list'

examples:
  {name} run recipes/quickstart.yaml
  {name} run recipes/quickstart.yaml --max_epochs 20 --seed_everything 2
  {name} run fit RECIPE --ckpt_path last         resume the newest run
  {name} run validate RECIPE --ckpt_path CKPT    evaluate a file, last or best
  {name} run fit RECIPE --help                   the settings that matter
  {name} run fit RECIPE --help all               every setting
  {name} run fit RECIPE --print_config           the recipe with all defaults
  {name} doctor RECIPE --devices 4 --strategy fsdp --no-load --memory 80
                                                 memory only, nothing loaded

short for --trainer.FLAG: --strategy --devices --num_nodes --accelerator
                          --precision --max_epochs
--debug shows the traceback of an error"""


def main(argv: Sequence[str] | None = None) -> int:
    """The `sppo` command; returns the exit code."""
    return _run("sppo", list(sys.argv[1:] if argv is None else argv))


def lightning_main(argv: Sequence[str] | None = None) -> int:
    """The `lightning` command: `run` is ours, anything else goes to lightning-sdk if it is installed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        return _run("lightning", arguments)
    try:
        entry = importlib.import_module("lightning_sdk.cli.entrypoint")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning_sdk":
            raise  # installed, but broken
    else:
        return int(entry.main_cli() or 0)  # reads sys.argv
    if not arguments or arguments[0] in OWN:
        return _run("lightning", arguments)
    print(
        f"lightning: '{arguments[0]}' is not a command of sppo-lit (try 'lightning run RECIPE'); other commands need "
        "pip install lightning-sdk",
        file=sys.stderr,
    )
    return 2


def _run(name: str, arguments: list[str]) -> int:
    share_cores()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = _answer(name, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        return 1
    return code


def _answer(name: str, arguments: list[str]) -> int:
    debug = "--debug" in arguments
    if processes.launched():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to all; the launching process decides
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # modules of the user's own; an installed command does not look there
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(name=name))
        return 0
    if arguments[0] == "--version":
        print(f"sppo-lit {__version__}")
        return 0
    try:
        if arguments[0] == "run":
            arguments = arguments[1:]
        # Also after `run`: if lightning-sdk is installed, `lightning list` is a command of its own.
        if arguments and (command := COMMANDS.get(arguments[0])):
            return command(arguments[1:])
        if "--help" in arguments or "-h" in arguments:
            return show_help(name, arguments)
        return train_or_validate(translate(arguments))
    except InputError as error:
        if debug:
            traceback.print_exc()
        elif not (isinstance(error, SharedError) and processes.launched()):
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if debug or error.errno not in UNWRITABLE:
            raise
        print(f"{name}: {error.filename or 'output'}: {error.strerror}; choose another file or folder", file=sys.stderr)
        return 2
    except Stopped as stop:
        if processes.launched():
            return 0  # otherwise Lightning would treat it as a failure and kill the other ranks
        if stop.line:
            print(f"{name}: {stop.line}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        elif interrupt.args or interrupt.__cause__ is None:  # otherwise the run's summary has printed where it stopped
            print(f"{name}: {' '.join(map(str, interrupt.args)) or 'interrupted'}", file=sys.stderr)
        return 130


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once: of the modules imported meanwhile, some swallow it or disguise it."""

    def end(*_: object) -> None:
        os.write(sys.stderr.fileno(), b"interrupted\n")
        os._exit(128 + signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def translate(arguments: Sequence[str]) -> list[str]:
    """`[fit|validate] RECIPE --flag value` as LightningCLI expects it: `fit --config RECIPE --trainer.flag value`.

    Raises:
        InputError: no recipe, unknown stage, missing file.
    """
    rest = list(arguments)
    stage = rest.pop(0) if rest and rest[0] in STAGES else "fit"
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is None and "--help" not in rest and "-h" not in rest:
        raise InputError("no recipe given; 'sppo list' shows them, e.g. recipes/quickstart.yaml")
    flags = []
    for argument in rest:
        flag, equals, value = argument.removeprefix("--").partition("=")
        short = argument.startswith("--") and flag in SHORT_FLAGS
        flags.append(f"--trainer.{flag}{equals}{value}" if short else argument)
    if recipe is None:
        return [stage, *flags]
    if recipe.endswith(YAML) and rest and not rest[0].startswith("-") and rest[0].endswith(YAML):
        raise InputError(f"two recipes: {recipe} and {rest[0]}; give one, and what is different as --flag value")
    path = Path(find(recipe))
    if path.is_dir():
        raise InputError(f"recipe {recipe} is a folder; name a .yaml file in it ('sppo list' shows the recipes)")
    if not path.is_file():
        hint = "a stage is one of " + ", ".join(STAGES) if not recipe.endswith(YAML) else "no such file"
        raise InputError(f"recipe {recipe}: {hint}; 'sppo list' shows the recipes")
    return [stage, "--config", str(path), *flags]


def show_help(name: str, arguments: Sequence[str]) -> int:
    """Print the settings of `run` that matter, or all of them.

    Raises:
        InputError: no such recipe.
    """
    from sppo_lit.cli.help_page import page

    rest = list(arguments)
    at = next(i for i, argument in enumerate(rest) if argument in ("--help", "-h"))
    everything = rest[at + 1 : at + 2] == ["all"]
    del rest[at : at + 1 + everything]
    stage, *more = translate([*rest, "--help"])
    print(page(stage, Path(more[1]) if more[:1] == ["--config"] else None, everything, name))
    return 0


def list_recipes(arguments: Sequence[str] = ()) -> int:
    """Print the recipes and what each is for."""
    if arguments:
        raise InputError(f"list takes no arguments, not {arguments[0]}")
    from sppo_lit.cli.recipe_list import show
    from sppo_lit.utils.console import console

    show(console)
    return 0


def audit_data(arguments: Sequence[str]) -> int:
    """Report which gold answers of a data set cannot be matched, and which saved verdicts change.

    Raises:
        InputError: unknown flag, data set or completions that cannot be read.
    """
    from rich.console import Console

    from sppo_lit.cli.audit import audit, options, show
    from sppo_lit.problems.prompts import PromptSettings
    from sppo_lit.problems.sources import open_problems

    args = options(arguments)
    bare = PromptSettings(suffix="")
    console = Console(highlight=False)
    source = open_problems(args.dataset, args.split, limit=args.limit, prompt=bare, skip_bad_rows=True)
    problems = source.problems()
    report = audit([*problems, *source.conflicting], args.completions, dropped=source.dropped)
    show(report, console)
    if args.json:
        report.write(args.json)
        console.print(f"report: {args.json}", markup=False)
    return 0


def run_study(arguments: Sequence[str]) -> int:
    """Run the unfinished runs of a grid and report on it; returns 1 if any run failed.

    Raises:
        InputError: anything the user can fix.
    """
    with ending_at_once():
        from sppo_lit.study.command import study

    return study(arguments, partial(run_settings, check=True))


def run_settings(arguments: Sequence[str], check: bool = False) -> Namespace:
    """Settings that `sppo run` would use for these arguments, defaults included; nothing is run.

    Args:
        arguments: after `sppo run`.
        check: see `settings_of`.

    Raises:
        InputError: anything the user can fix.
    """
    from sppo_lit.cli.recipe_cli import settings_of

    return settings_of(translate(arguments), check)


def draw_figure(arguments: Sequence[str]) -> int:
    """Draw one figure and print its numbers.

    Raises:
        InputError: anything the user can fix.
    """
    with ending_at_once():
        from sppo_lit.study.figure_command import figure

    return figure(arguments)


def score_problems(arguments: Sequence[str]) -> int:
    """Write the predicted success of every problem of a data set.

    Raises:
        InputError: anything the user can fix.
    """
    with ending_at_once():
        from sppo_lit.cli.recipe_cli import silence_libraries
        from sppo_lit.cli.score import score

    silence_libraries()
    return score(arguments)


def push_models(arguments: Sequence[str]) -> int:
    """Upload a run's exported models to the Hugging Face Hub.

    Raises:
        InputError: anything the user can fix.
    """
    from sppo_lit.cli.push import push

    return push(arguments)


def examine(arguments: Sequence[str]) -> int:
    """Check a recipe before a long run; returns 0 if all checks pass, else 1.

    Raises:
        InputError: anything the user can fix.
    """
    with ending_at_once():
        from sppo_lit.cli.doctor import doctor
        from sppo_lit.doctor.report import options

    args, rest = options(arguments)
    return doctor(args, translate(rest))


def train_or_validate(arguments: list[str]) -> int:
    """Parse a recipe, build everything and run; returns 0.

    Raises:
        InputError: anything the user can fix.
    """
    with ending_at_once():
        from sppo_lit.cli.recipe_cli import RecipeCLI, run

    run(arguments, RecipeCLI)
    return 0


def convert_checkpoint(arguments: Sequence[str]) -> int:
    """`convert`: see `convert.convert`."""
    from sppo_lit.cli.convert import convert

    return convert(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": list_recipes,
    "doctor": examine,
    "audit": audit_data,
    "study": run_study,
    "figure": draw_figure,
    "score": score_problems,
    "convert": convert_checkpoint,
    "push": push_models,
}
"""Besides `run`."""

OWN = (*COMMANDS, "-h", "--help", "--version")
"""Besides `run`, what `lightning` handles itself if lightning-sdk is not installed."""


if __name__ == "__main__":
    sys.exit(main())
