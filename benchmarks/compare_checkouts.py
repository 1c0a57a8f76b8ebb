"""Runs the same short trainings in two checkouts and compares their results bit for bit.

    python benchmarks/compare_checkouts.py OLD NEW                       # all cases, about ten minutes per checkout
    python benchmarks/compare_checkouts.py OLD NEW --only ppo,fsdp       # some of them
    python benchmarks/compare_checkouts.py OLD OLD                       # whether a commit is deterministic

Compared are `metrics.csv` (all but times, rates and memory), every exported weight and every response of every
evaluation. Runs are kept in `<out>/<commit>/<case>`: a case that a commit has finished is not run again, unless files
of the checkout are uncommitted. Exit code 1 if a run fails or anything differs by more than `--tolerance`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file

from sppo_lit.cli.renamed import SETTINGS

RENAMED = {old: new.partition(" ")[0] for old, new in SETTINGS.items()}
"""Settings of the model that newer checkouts keep in groups."""

ITERATIONS = 10
COMMON = {
    "trainer.accelerator": "cpu",
    "model.verifier.workers": 1,
    "data.val": "[{path: arithmetic, limit: 100}]",
}
FIT = {"trainer.max_epochs": ITERATIONS, "trainer.check_val_every_n_epoch": ITERATIONS // 2}
SHORT = {"data.problems_per_epoch": 128, "model.minibatch_size": 32}
LONG = {"data.val": "[{path: arithmetic, limit: 50}]", "model.minibatch_size": 16}  # 185 to 270 tokens a response
WALL_CLOCK = ("time/", "memory/", "clock/seconds")
"""Prefixes of columns of `metrics.csv` that differ between equal runs, as do those ending in `_per_second`."""

RECORD = "finished.json"
"""File in the folder of a finished run with its arguments and seconds."""


@dataclass(frozen=True)
class Case:
    """One run of the command line.

    Attributes:
        about: description, if the recipe's name is not enough.
        recipe: file in `recipes/`.
        settings: overrides of the recipe, by their old names.
        evaluates: the case whose last checkpoint is evaluated; None trains.
    """

    about: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluates: str | None = None

    @property
    def title(self) -> str:
        """Name for display."""
        return self.about or self.recipe


def _long(algorithm: str, problems: int, **settings: Any) -> Case:
    few = {**LONG, "data.problems_per_epoch": problems, **settings}
    return Case("", f"arithmetic/{algorithm}.yaml", few)


CASES = {
    "quickstart": Case("", "quickstart.yaml"),
    "sppo": _long("sppo", 48),
    "ppo": _long("ppo", 48),
    "ppo_bce": _long("ppo_bce", 48),
    "grpo": _long("grpo", 6),
    "dr_grpo": _long("dr_grpo", 6),
    "rloo": _long("rloo", 8, **{"model.minibatch_size": 20}),
    "remax": _long("remax", 32),
    "grpo_options": Case(
        "two epochs, recomputed log-probs, entropy, overlong penalty, equal groups dropped, whitened",
        "arithmetic/grpo.yaml",
        {
            **LONG,
            "data.problems_per_epoch": 6,
            "model.ppo_epochs": 2,
            "model.old_logprobs": "recompute",
            "model.entropy_coef": 0.01,
            "model.reward.overlong_cache": 120,
            "model.drop_equal_groups": True,
            "model.whiten": True,
        },
    ),
    "ppo_options": Case(
        "PPO with every other setting of the update changed, and a custom reward",
        "quickstart.yaml",
        {
            "model.algorithm": "ppo",
            "data.problems_per_epoch": 64,
            "model.samples_per_prompt": 2,
            "model.minibatch_size": 32,
            "model.ppo_epochs": 2,
            "model.clip_low": 0.05,
            "model.clip_high": 0.1,
            "model.dual_clip": 1.5,
            "model.aggregation": "seq-mean-token-mean",
            "model.value_clip": 0.1,
            "model.critic_warmup": 2,
            "model.gamma": 0.99,
            "model.lam": 0.9,
            "model.whiten": False,
            "model.micro_batch_tokens": 1024,
            "model.gradient_checkpointing": True,
            "model.max_concurrent": 48,
            "model.max_skipped_steps": 3,
            "model.reward.correctness": 0.9,
            "model.reward.custom": "{operator.countOf: 0.05}",  # how often a one-digit answer is in the response
            "model.policy_optimizer.lr": 1e-3,
            "model.policy_optimizer.weight_decay": 0.1,
            "model.policy_optimizer.schedule": "cosine",
            "model.policy_optimizer.warmup_iterations": 3,
        },
    ),
    "lora_kl": Case(
        "LoRA, KL to the base weights",
        "quickstart.yaml",
        {**SHORT, "model.lora.rank": 4, "model.kl.coef": 0.01, "model.policy_optimizer.lr": 1e-3},
    ),
    "kl_bf16": Case(
        "KL to a frozen copy, bf16-mixed",
        "quickstart.yaml",
        {**SHORT, "model.kl.coef": 0.05, "model.kl.estimator": "k2", "trainer.precision": "bf16-mixed"},
    ),
    "warmup": Case("", "arithmetic/warmup.yaml", {"data.problems_per_epoch": 512}),
    "ddp": Case("two processes, ddp", "quickstart.yaml", {**SHORT, "trainer.strategy": "ddp", "trainer.devices": 2}),
    "fsdp": Case("two processes, fsdp", "quickstart.yaml", {**SHORT, "trainer.strategy": "fsdp", "trainer.devices": 2}),
    "ddp_grpo": Case(
        "two processes, ddp, of which one may have nothing to train on",
        "quickstart.yaml",
        {
            "trainer.strategy": "ddp",
            "trainer.devices": 2,
            "model.algorithm": "grpo",
            "model.samples_per_prompt": 4,
            "model.minibatch_size": 8,
            "model.drop_equal_groups": True,
            "data.problems_per_epoch": 16,
        },
    ),
    "fsdp_ppo": Case(
        "two processes, fsdp, token-level critic, CPU offload",
        "quickstart.yaml",
        {
            **SHORT,
            "trainer.strategy": "fsdp",
            "trainer.devices": 2,
            "model.algorithm": "ppo",
            "model.cpu_offload": True,
            "model.old_logprobs": "recompute",
            "model.micro_batch_tokens": 512,
        },
    ),
    "validate": Case(
        "the quickstart's checkpoint, two samples and V",
        "quickstart.yaml",
        {"model.evaluation.samples": 2, "model.evaluation.values": True},
        evaluates="quickstart",
    ),
}


# ------------------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Checkout:
    """A folder with the project.

    Attributes:
        path: the folder.
        results: folder of its runs.
        commit: commit of its runs; "" if anything that a run depends on is not committed.
    """

    path: Path
    results: Path
    commit: str

    @property
    def name(self) -> str:
        """Name for display."""
        return self.results.name

    def environment(self) -> dict[str, str]:
        """Environment with one thread, and this checkout's package before an installed one."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.path)}


def open_checkout(path: Path, out: Path) -> Checkout:
    """The checkout in a folder.

    Raises:
        SystemExit: it is not a checkout, or Python would import the package from elsewhere.
    """
    path = path.resolve()
    if not (path / "sppo_lit" / "__init__.py").is_file():
        sys.exit(f"{path}: not a checkout of sppo-lit")
    commit = commit_of(path)
    checkout = Checkout(path, out.resolve() / (commit or f"{path.name}-uncommitted"), commit)
    command = [sys.executable, "-c", "import sppo_lit; print(sppo_lit.__file__)"]
    file = subprocess.run(command, cwd=path, env=checkout.environment(), capture_output=True, text=True).stdout.strip()
    if Path(file).resolve().parents[1] != path:
        sys.exit(f"{path}: Python imports sppo_lit from {file or 'nowhere'}")
    return checkout


def commit_of(path: Path) -> str:
    """The commit of a checkout; "" if there is none or anything that a run depends on differs from it."""
    git = ["git", "--no-optional-locks", "-C", str(path)]  # do not lock a repository in use
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "sppo_lit", "recipes", "data"], capture_output=True, text=True
    )
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    return "" if changed.returncode or changed.stdout.strip() else head.stdout.strip()


def flags(checkout: Checkout, case: Case) -> list[str]:
    """A case's settings by their names in this checkout; its recipe shows whether they are grouped."""
    model = yaml.safe_load((checkout.path / "recipes" / case.recipe).read_text(encoding="utf-8"))["model"]
    prefix = "model.init_args." if "class_path" in model else "model."
    grouped = any(key.partition(".")[0] == "batch" for key in model.get("init_args", model))
    settings = {}
    for key, value in {**COMMON, **({} if case.evaluates else FIT), **case.settings}.items():
        if key.startswith("model."):
            name = key.removeprefix("model.")
            key = prefix + (RENAMED.get(name, name) if grouped else name)
        settings[key] = str(value).lower() if isinstance(value, bool) else value
    return [f"--{key}={value}" for key, value in settings.items()]


@dataclass
class Run:
    """A case in one checkout.

    Attributes:
        folder: folder of the run.
        seconds: duration of the run.
        kept: whether it was run by an earlier call.
        failure: why there is nothing to compare; "" on success.
    """

    folder: Path
    seconds: float = 0.0
    kept: bool = False
    failure: str = ""

    @property
    def results(self) -> Path:
        """Folder of `metrics.csv`."""
        return next(self.folder.glob("*/version_0"), self.folder)

    @property
    def output(self) -> Path:
        """Output of the run."""
        return self.folder / "output.txt"


class Runner:
    """Runs cases in parallel, each in its own process group.

    Args:
        on_start: called with the name of a run that starts.
        jobs: number of parallel runs.
        limit: seconds after which a run is killed.
        fresh: repeat finished runs.
    """

    def __init__(self, on_start: Callable[[str], None], jobs: int, limit: float, fresh: bool) -> None:
        self.on_start, self.limit, self.fresh = on_start, limit, fresh
        self._pool = ThreadPoolExecutor(jobs)
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._closed = False

    def submit(self, checkout: Checkout, name: str, base: Future[Run] | None) -> Future[Run]:
        """Queue a case; `base` is the run that it evaluates, submitted before it."""
        return self._pool.submit(self._run, checkout, name, base)

    def close(self) -> None:
        """Kill running cases and start no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for group in self._groups:
                kill(group)

    def _run(self, checkout: Checkout, name: str, base: Future[Run] | None) -> Run:
        case, run = CASES[name], Run(checkout.results / name)
        trained = base.result() if base else None
        if trained and trained.failure:
            run.failure = f"{case.evaluates} failed"
            return run
        try:
            changed = flags(checkout, case)
        except (OSError, KeyError, yaml.YAMLError) as error:
            run.failure = f"recipes/{case.recipe}: {type(error).__name__} {error}"
            return run
        record = run.folder / RECORD
        if checkout.commit and not self.fresh and record.is_file() and (trained is None or trained.kept):
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["arguments"] == changed:
                run.seconds, run.kept = known["seconds"], True
                return run
        shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.mkdir(parents=True)
        places = ["--run_name=run", f"--trainer.default_root_dir={run.folder}"]
        if trained:
            places.append(f"--ckpt_path={trained.results / 'checkpoints' / 'last.ckpt'}")
        stage = "validate" if case.evaluates else "fit"
        command = ["-m", "sppo_lit.cli", "run", stage, f"recipes/{case.recipe}", *places, *changed]
        self.on_start(f"{checkout.name} {name}")
        begun = time.monotonic()
        run.failure = self._wait([sys.executable, *command], checkout, run.output)
        run.seconds = time.monotonic() - begun
        if not run.failure and checkout.commit == commit_of(checkout.path):  # otherwise edited in the meantime
            content = {"arguments": changed, "seconds": round(run.seconds, 1)}
            written = record.with_suffix(".part")
            written.write_text(json.dumps(content, indent=1), encoding="utf-8")
            written.replace(record)
        return run

    def _wait(self, command: Sequence[str], checkout: Checkout, output: Path) -> str:
        """Run a command; returns why it failed, "" on success."""
        with output.open("wb") as printed:
            with self._lock:
                if self._closed:
                    return "stopped"
                process = subprocess.Popen(
                    command,
                    cwd=checkout.path,
                    env=checkout.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._groups.add(process.pid)
            try:
                code = process.wait(self.limit)
                return f"exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                return f"killed after {self.limit:.0f} s"
            finally:
                with self._lock:
                    kill(process.pid)  # also processes it may have left
                    self._groups.remove(process.pid)
                process.wait()


def kill(group: int) -> None:
    """Kill a process group, if it exists."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------- comparing


class Difference(NamedTuple):
    """A difference between two runs.

    Attributes:
        size: |a - b| / max(1, |a|, |b|); infinite if not numeric.
        text: description.
    """

    size: float
    text: str


class Part(NamedTuple):
    """A kind of result: how much of it was compared, and what differs."""

    compared: str
    differences: list[Difference]


def gap(a: Any, b: Any) -> float:
    """Distance of two JSON values: the size of a `Difference`, 0 if they are equal."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        if a == b or (math.isnan(a) and math.isnan(b)):
            return 0.0
        size = abs(a - b) / max(1.0, abs(a), abs(b))
        return size if math.isfinite(size) else math.inf
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((gap(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max(map(gap, a, b), default=0.0)
    return 0.0 if a == b else math.inf


def number(text: str) -> float | str:
    """Parse a cell of a table."""
    try:
        return float(text)
    except ValueError:
        return text


def only_one(kind: str, a: Iterable[str], b: Iterable[str]) -> list[Difference]:
    """Names that only one side has."""
    old, new = set(a), set(b)
    where = {name: "OLD" if name in old else "NEW" for name in sorted(old ^ new)}
    return [Difference(math.inf, f"{kind} {name}: only in {side}") for name, side in where.items()]


def metrics(run: Path) -> list[dict[str, float | str]]:
    """Rows of `metrics.csv` without wall-clock times, memory and empty cells."""
    if not (run / "metrics.csv").is_file():
        return []
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [
            {
                key: number(text)
                for key, text in row.items()
                if text and not key.startswith(WALL_CLOCK) and not key.endswith("_per_second")
            }
            for row in csv.DictReader(file)
        ]


def compare_metrics(a: Path, b: Path) -> Part:
    """Compare every cell; reports how often a column differs, where first, and the largest difference."""
    old, new = metrics(a), metrics(b)
    columns: list[set[str]] = [{key for row in rows for key in row} for rows in (old, new)]
    wrong = only_one("column", *columns)
    if len(old) != len(new) or not old:
        wrong.append(Difference(math.inf, f"metrics.csv: {len(old)} and {len(new)} rows"))
    for key in sorted(columns[0] & columns[1]):
        pairs = [(x.get("step", ""), x.get(key), y.get(key)) for x, y in zip(old, new, strict=False)]
        unequal = [(gap(x, y), step, x, y) for step, x, y in pairs if gap(x, y)]
        if unequal:
            _, step, x, y = unequal[0]
            text = f"{key}: {len(unequal)} of {len(pairs)} rows, first at step {step}: {x} and {y}"
            wrong.append(Difference(max(size for size, *_ in unequal), text))
    return Part(f"{len(old)} × {len(columns[0] & columns[1])}", wrong)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every exported tensor."""
    files = sorted((run / "hf").glob("*/*.safetensors"))
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def compare_weights(a: Path, b: Path, trained: bool) -> Part:
    """Compare every tensor by its bytes."""
    old, new = weights(a), weights(b)
    wrong = only_one("weight", old, new)
    if trained and not old:
        wrong.append(Difference(math.inf, "no weights were exported"))
    numbers = 0
    for name in sorted(old.keys() & new.keys()):
        x, y = old[name], new[name]
        numbers += x.numel()
        if x.dtype != y.dtype or x.shape != y.shape:
            wrong.append(Difference(math.inf, f"{name}: {x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}"))
        elif not torch.equal(bits(x), bits(y)):
            different = (x != y) & ~(x.isnan() & y.isnan())  # none where only the sign of a zero differs
            p, q = x[different].double(), y[different].double()
            sizes = (p - q).abs() / torch.maximum(p.abs(), q.abs()).clamp(min=1.0)
            size = max((s if math.isfinite(s) else math.inf for s in sizes.tolist()), default=0.0)
            wrong.append(Difference(size, f"{name}: {len(sizes):,} of {x.numel():,} numbers"))
    return Part(f"{len(old)} ({numbers / 1e6:.2f}M)" if old else "–", wrong)


def evaluations(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Responses without seconds, by file."""
    responses = {}
    for file in sorted((run / "evaluations").glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            read = [json.loads(line) for line in lines]
        responses[file.name] = [{key: value for key, value in line.items() if "seconds" not in key} for line in read]
    return responses


def compare_evaluations(a: Path, b: Path) -> Part:
    """Compare every response; reports how often a file differs and where first."""
    old, new = evaluations(a), evaluations(b)
    wrong = only_one("evaluation", old, new)
    if not any(old.values()):
        wrong.append(Difference(math.inf, "no responses of an evaluation"))
    for name in sorted(old.keys() & new.keys()):
        if len(old[name]) != len(new[name]):
            wrong.append(Difference(math.inf, f"{name}: {len(old[name])} and {len(new[name])} responses"))
        unequal = [(gap(x, y), x) for x, y in zip(old[name], new[name], strict=False) if gap(x, y)]
        if unequal:
            first = f"first to {unequal[0][1].get('problem')}, sample {unequal[0][1].get('sample')}"
            text = f"{name}: {len(unequal)} of {len(old[name])} responses, {first}"
            wrong.append(Difference(max(size for size, _ in unequal), text))
    return Part(f"{sum(map(len, old.values())):,}", wrong)


def compare(name: str, old: Run, new: Run) -> list[Part]:
    """Metrics, weights and responses of two runs of a case."""
    a, b = old.results, new.results
    return [compare_metrics(a, b), compare_weights(a, b, not CASES[name].evaluates), compare_evaluations(a, b)]


# ------------------------------------------------------------------------------------------------------- command line


def verdict(differences: Sequence[Difference], tolerance: float) -> tuple[bool, str, str]:
    """Whether a case passes; the result in words, and its colour."""
    if not differences:
        return True, "equal", "green"
    size = max(d.size for d in differences)
    if math.isinf(size):
        return False, "differs", "red"
    good = tolerance > 0 and size <= tolerance
    return good, f"{'within' if good else 'differs'} {size:.1e}", "yellow" if good else "red"


def report(console: Console, runs: Mapping[str, Sequence[Run]], tolerance: float, titles: Sequence[str]) -> int:
    """Compare all cases and print the table and the differences; returns the number of failed cases."""
    table = Table(title=f"{titles[0]} and {titles[1]}", title_justify="left", title_style="bold")
    table.add_column("case", no_wrap=True)
    table.add_column("what", style="dim", ratio=1)
    for column in ("seconds", "metrics", "weights", "responses"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    bad, lines = 0, []
    for name, pair in runs.items():
        seconds = " / ".join(f"{run.seconds:.0f}" for run in pair)
        if failed := [run.failure for run in pair if run.failure]:
            good, word, colour, cells = False, "failed", "red", ["–", "–", "–"]
            lines += [f"{name}: {failure}" for failure in failed]
        else:
            parts = compare(name, *pair)
            differences = sorted((d for part in parts for d in part.differences), key=lambda d: -d.size)
            good, word, colour = verdict(differences, tolerance)
            cells = [part.compared for part in parts]
            lines += [f"{name}: {d.text} ({d.size:.1e})" for d in differences[:8]]
            lines += [f"{name}: and {len(differences) - 8} more"] if len(differences) > 8 else []
        bad += not good
        table.add_row(name, CASES[name].title, seconds, *cells, Text(word, colour))
    console.print()
    console.print(table)
    console.print("[dim]metrics: rows × columns; weights: tensors (numbers)[/dim]")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    count = f"{len(runs) - bad} of {len(runs)} cases"
    equal = "equal bit for bit" if tolerance == 0 else f"equal to within {tolerance:g}"
    console.print(Text(f"{count} {equal}", "bold red" if bad else "bold green"))
    return bad


def chosen(only: str) -> list[str]:
    """Names of the cases to run, including those that they evaluate, in the order of the table.

    Raises:
        SystemExit: unknown case.
    """
    names = [name.strip() for name in only.split(",") if name.strip()] or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        sys.exit(f"--only: no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    needed = {CASES[name].evaluates for name in names}
    return [name for name in CASES if name in names or name in needed]


def stop(*_: Any) -> None:
    """On SIGTERM exit as after Ctrl-C, so that no run outlives this process; ignore a second one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns 0 if both checkouts compute the same."""
    epilog = "cases:\n" + "\n".join(f"  {name:<13} {case.title}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="folder of one checkout")
    parser.add_argument("new", type=Path, metavar="NEW", help="folder of the other; the same commit is run twice")
    parser.add_argument("--only", default="", metavar="CASE,CASE", help="these cases (default all)")
    parser.add_argument(
        "--out", type=Path, default=Path("lightning_logs/compare"), help="folder of runs (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs (default 1)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest |a-b| / max(1,|a|,|b|) (default 0)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds until a run is killed (default 600)")
    parser.add_argument("--fresh", action="store_true", help="repeat finished runs")
    options = parser.parse_args(arguments)
    names = chosen(options.only)
    sides = [open_checkout(path, options.out) for path in (options.old, options.new)]
    if sides[0].name == sides[1].name:
        sides[1] = Checkout(sides[1].path, sides[1].results.with_name(f"{sides[1].name}-again"), sides[1].commit)
    console = Console(width=110, highlight=False)
    signal.signal(signal.SIGTERM, stop)
    status = console.status("")
    runner = Runner(status.update, options.jobs, options.limit, options.fresh)
    futures: dict[tuple[int, str], Future[Run]] = {}
    try:
        for side, checkout in enumerate(sides):
            for name in names:
                base = CASES[name].evaluates
                futures[side, name] = runner.submit(checkout, name, futures[side, base] if base else None)
        places = {future: place for place, future in futures.items()}
        width = max(len(side.name) for side in sides)
        with status:
            for i, future in enumerate(as_completed(places), start=1):
                side, name = places[future]
                run = future.result()
                how = Text(run.failure, "red") if run.failure else Text("kept" if run.kept else "done", "green")
                line = f"{i:>3}/{len(futures)}  {sides[side].name:<{width}}  {name:<13} {run.seconds:>5.0f} s  "
                console.print(Text(line) + how)
                if run.failure and run.output.is_file():
                    end = run.output.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                    console.print("\n".join(f"    {row}" for row in end), markup=False, style="dim")
    finally:
        runner.close()
    runs = {name: [futures[side, name].result() for side in (0, 1)] for name in names}
    titles = [f"{side.name} ({side.path})" for side in sides]
    return int(report(console, runs, options.tolerance, titles) > 0)


if __name__ == "__main__":
    sys.exit(main())
