"""LightningCLI with this project's module, data, callbacks, loggers and one-line errors."""

from __future__ import annotations

import logging
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sppo_lit.algorithms.batching import check_minibatch
from sppo_lit.callbacks.checkpoint import IterationCheckpoint
from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.completions import CompletionsTable
from sppo_lit.callbacks.curves import Curves
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.callbacks.export import HuggingFaceExport
from sppo_lit.callbacks.journal import has_unfinished
from sppo_lit.callbacks.progress import RunProgress
from sppo_lit.callbacks.signals import StopSignals
from sppo_lit.callbacks.summary import RunSummary
from sppo_lit.cli import STAGES
from sppo_lit.cli.messages import explain, is_lost_connection, one_line
from sppo_lit.cli.resume import (
    FolderLogger,
    RunCSVLogger,
    checkpoint_file,
    response_settings,
    run_of,
    unfinished_run,
    usable_checkpoint,
)
from sppo_lit.distributed import processes
from sppo_lit.distributed.strategy import ShardedStrategy
from sppo_lit.errors import InputError, Stopped
from sppo_lit.training.datamodule import MathDataModule
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.protocols import TrainingModule, callbacks_of, training_module
from sppo_lit.training.supervised import SupervisedModule
from sppo_lit.utils.console import console
from sppo_lit.utils.lock import FolderLock

CALLBACKS = {
    "clock": Clock,
    "signals": StopSignals,
    "progress": RunProgress,
    "completions": CompletionsTable,
    "evaluation": Evaluation,
    "checkpoint": IterationCheckpoint,
    "export": HuggingFaceExport,
    "curves": Curves,
    "summary": RunSummary,
}
"""Built in; each is set by its top-level key in a recipe. Order is the order in which they act."""

TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": -1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}

QUIET = (
    ".*LightningCLI's args parameter is intended to run.*",  # this command line translates its arguments
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*Consider setting `persistent_workers.*",
    ".*is an instance of `nn.Module` and is already saved.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",  # transformers loads models so; their dropout is off anyway
    ".*isinstance.treespec, LeafSpec.*",
    ".*when logging on epoch level in distributed setting.*",  # the evaluation has reduced its numbers itself
    ".*deprecated.*",
)
"""Lightning's warnings that do not apply here, mostly because the one batch is made on the spot."""

QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)
"""Say which devices there are, advertise other loggers, and tell the seed: nothing that a user has to know."""


class RecipeCLI(LightningCLI):
    """One recipe, one run.

    Args:
        arguments: as LightningCLI takes them.
        recipe: the file among them, if there is one.
        made: this object is appended to it at once, so that it is known where construction (which runs) fails.

    Attributes:
        writes: whether it makes a run folder, or goes on with one.
        keys: every key of a recipe.
    """

    writes = True

    def __init__(self, arguments: list[str], recipe: Path | None, made: list[RecipeCLI]) -> None:
        made.append(self)
        self.recipe = recipe
        self.keys: list[str] = []
        self.started = 0  # iterations of the checkpoint that the run starts from
        self.new_folders: list[Path] = []
        self.continued: Path | None = None
        self._lock: FolderLock | None = None
        self._built: Trainer | None = None  # these two: once they are there
        self._trained: TrainingModule | None = None
        self.asked: dict[str, object] | None = None  # what the responses of an evaluation depend on
        named = recipe is not None and names_a_class(recipe)
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule if named else SPPOModule,
            MathDataModule,
            subclass_mode_model=named,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**strict, **{stage: dict(strict) for stage in self.subcommands()}},
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The stages that a recipe has."""
        return {stage: arguments for stage, arguments in LightningCLI.subcommands().items() if stage in STAGES}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The built-in callbacks, the run's name and wandb."""
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument("--run_name", type=str | None, default=None, help="Folder of the run in lightning_logs.")
        parser.add_argument("--wandb", type=str | None, default=None, help="Also log to this Weights & Biases project.")
        self.keys = [action.dest for action in parser._actions]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "validate":
            parser.set_defaults({"verbose": False})  # Lightning's table says again what ours has said
        return parser

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no hyperparameters: the recipe does."""

    def _set_seed(self) -> None:
        """Within the range that all generators take."""
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= (seed or 0) < 2**32:
            raise InputError(f"seed_everything is {seed}; it must be from 0 to {2**32 - 1:,}")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Check checkpoint and trainer settings before anything is built or written."""
        settings = self.config[self.subcommand]
        check_trainer(settings.trainer)
        check_run_name(settings.run_name)
        model = settings.model.get("init_args", settings.model)
        if offload_asked_for(model) and settings.trainer.strategy != "fsdp":
            raise InputError("model.memory.cpu_offload needs --strategy fsdp; add it, or leave it out")
        if self.subcommand == "fit" and not settings.data.train.path:
            raise InputError(
                f"{self.recipe or 'command line'}: data.train.path is missing; give it in the recipe or as "
                "--data.train.path VALUE ('validate' does without)"
            )
        if self.subcommand == "validate" and not settings.data.val:
            raise InputError(
                f"{self.recipe or 'command line'}: data.val is empty: there is nothing to evaluate; name a set, e.g. "
                "--data.val '[{path: gsm8k}]'"
            )
        settings.run_name = self._runs().name  # so that the run's config.yaml finds the same folder
        if settings.get("ckpt_path"):
            resume = self.subcommand == "fit"
            if resume and (folder := run_of(checkpoint_file(settings.ckpt_path, self._runs()), self._runs())):
                self._take(folder)  # before its checkpoint is read: its other process may be writing another one
            file, self.started = usable_checkpoint(settings.ckpt_path, self._runs(), resume)
            settings.ckpt_path = str(file)
            self.continued = run_of(file, self._runs()) if resume else None
            if self.continued is None:
                self.release()
            if resume and 0 <= (settings.trainer.max_epochs or -1) <= self.started:
                raise InputError(
                    f"--ckpt_path {file}: it is from iteration {self.started} and the run ends at --max_epochs "
                    f"{settings.trainer.max_epochs}; raise --max_epochs to train on"
                )
        if self.subcommand == "validate":
            self.asked = response_settings(settings)
            if settings.evaluation.resume:
                self.continued = unfinished_run(self._folder_of_runs(), self.asked)
                if self.continued:
                    self._take(self.continued)
                    if unfinished_run(self._folder_of_runs(), self.asked) != self.continued:  # it has ended just now
                        self.continued = None
                        self.release()

    def instantiate_classes(self) -> None:
        """Without critic where weights are evaluated that come from no checkpoint."""
        settings = self.config[self.subcommand]
        model = settings.model.get("init_args", settings.model)
        if "policy_only" in model:
            needed = self.subcommand == "fit" or settings.get("ckpt_path") or model.evaluation["values"]
            model.policy_only = not needed
        super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Last checks before anything is sampled."""
        try:
            self._trained = training_module(self.model)
        except InputError as error:
            raise InputError(f"{self.recipe}: model.class_path: {error}") from error
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, Evaluation) and self.asked is not None:
                callback.keep_responses(self.asked)
        if self.subcommand == "validate" and not rank():
            given, source = self.config[self.subcommand].ckpt_path, self.config[self.subcommand].model
            weights = f"checkpoint: {given} (iteration {self.started})" if given else "no checkpoint: the weights of "
            if not given:
                weights += str(source.get("init_args", source).policy.path)
            console.print(weights, markup=False, soft_wrap=True)
        self.config[self.subcommand].ckpt_path = None  # the config.yaml of a resumed run starts no resume by itself
        if self.subcommand == "fit":
            check_shares(self.model, self.datamodule, self.trainer.world_size)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """With TensorBoard and CSV loggers in the run's folder, and those of the recipe beside them."""
        own = self._get(self.config_init, "trainer").get("logger")
        if self.writes and not self._get(self.config, "trainer").get("fast_dev_run"):
            more = [] if own in (None, True, False) else own if isinstance(own, list) else [own]
            kwargs["logger"] = [*self._loggers(silent=own is False), *more]
        if self._get(self.config_init, "trainer").get("strategy") == "fsdp":
            model = self._get(self.config, "model")
            offload = offload_asked_for(model.get("init_args", model))
            kwargs["strategy"] = ShardedStrategy(offload)  # Lightning's own needs a GPU and cannot hold two models
        if self.continued:
            kwargs["num_sanity_val_steps"] = 0  # the interrupted run has evaluated these weights
        try:
            self._built = super().instantiate_trainer(**kwargs)
            return self._built
        except (ValueError, TypeError, MisconfigurationException, ModuleNotFoundError) as error:
            raise InputError(
                f"trainer: {one_line(error).rstrip('.')}; correct --accelerator, --devices, --strategy or --precision"
            ) from error

    def _runs(self) -> Path:
        """Folder of this recipe's runs."""
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or "lightning_logs")
        name = self._get(self.config, "run_name")
        if name is None and self.recipe is not None:
            parent = self.recipe.parent.name
            name = self.recipe.stem if parent in ("recipes", "") else f"{parent}-{self.recipe.stem}"
        return root / (name or "run")

    def _folder_of_runs(self) -> Path:
        """Where this run's folder lies: evaluations lie beside the runs of training."""
        runs = self._runs()
        return runs if self.subcommand == "fit" else runs.with_name(f"{runs.name}-{self.subcommand}")

    def _loggers(self, silent: bool) -> list[Logger]:
        """Those of the run's folder; one that only gives it, where the recipe wants silence."""
        runs = self._folder_of_runs()
        version = self.continued.name if self.continued else self._new_version(runs)
        if silent:
            return [FolderLogger(runs.parent, runs.name, version)]
        csv = RunCSVLogger(runs.parent, runs.name, version, self.started)
        folder = Path(csv.log_dir)
        purge = self.started + 1 if self.continued else None
        loggers: list[Logger] = [
            csv,
            TensorBoardLogger(runs.parent, name=runs.name, version=csv.version, purge_step=purge),
        ]
        if project := self._get(self.config, "wandb"):
            try:
                from lightning.pytorch.loggers import WandbLogger

                loggers.append(WandbLogger(project=project, name=f"{runs.name}-{csv.version}", save_dir=folder))
            except ModuleNotFoundError:
                raise InputError("--wandb needs the extra: pip install 'sppo-lit[wandb]'") from None
        return loggers

    def _new_version(self, runs: Path) -> str:
        """Make the next free run folder, which no other process can take at the same time; returns its name."""
        while True:
            numbers = [p.name.removeprefix("version_") for p in runs.glob("version_*")]
            folder = runs / f"version_{max((int(n) for n in numbers if n.isdecimal()), default=-1) + 1}"
            self.new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
            if rank():
                return folder.name
            runs.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            self._take(folder)
            return folder.name

    def _take(self, folder: Path) -> None:
        """Lock a run folder until `release`; the other ranks write to it only what rank zero waits for."""
        self.release()
        if self.writes and not rank():
            self._lock = FolderLock(folder)

    def release(self) -> None:
        """Let other processes go on with the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def launched_ranks(self) -> processes.Ranks:
        """Processes that the trainer has launched."""
        return [] if self._built is None else processes.launched_ranks(self._built)

    @property
    def goes_on(self) -> bool:
        """Whether an evaluation has left responses that the same command goes on from."""
        folder = self.continued or (self.new_folders[0] if self.new_folders else None)
        return self.subcommand == "validate" and folder is not None and has_unfinished(folder / "evaluations")

    def discard_unused_folder(self) -> None:
        """Remove the folders that this run made, if it ended without a finished iteration, response or finding."""
        done = 0 if self._trained is None else self._trained.iteration
        if rank() or not self.new_folders or (self.subcommand == "fit" and done > self.started) or self.goes_on:
            return
        if any(self.new_folders[0].rglob("bad_minibatch-*")):
            return
        shutil.rmtree(self.new_folders[0], ignore_errors=True)
        for parent in self.new_folders[1:]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


C = TypeVar("C", bound=RecipeCLI)


def run(arguments: list[str], kind: type[C]) -> C:
    """Run LightningCLI, of this kind, on translated arguments, and return it.

    Raises:
        InputError: anything the user can mend, in one line; a run folder that holds nothing yet is removed.
        KeyboardInterrupt: Ctrl-C before anything runs; its argument, if any, is a line that was not printed yet.
        Stopped: SIGINT or SIGTERM.
    """
    be_quiet()
    recipe = Path(arguments[2]) if arguments[1:2] == ["--config"] else None
    made: list[RecipeCLI] = []
    try:
        with processes.together():
            return kind(arguments, recipe, made)
    except BaseException as error:
        others = [process for cli in made for process in cli.launched_ranks()]
        if is_lost_connection(error):
            processes.wait_for_end(others)  # the rank that died first has said why, or will be named
        for cli in made:
            cli.discard_unused_folder()
        processes.end(others, grace=processes.GRACE if isinstance(error, (InputError, Stopped)) else 0.0)
        interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
        if interrupted or isinstance(error, Stopped):
            told = made[0].subcommand == "fit"  # by RunSummary
            more = "; the same command goes on from the responses on disk" if made[0].goes_on else ""
            stop = "" if told else f"interrupted{more}"
            if isinstance(error, Stopped):
                raise Stopped(error.signum, stop) from error
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off
            raise KeyboardInterrupt(*([stop] if stop else [])) from error
        if line := explain(error, recipe, arguments, made[0].keys if made else []):
            raise InputError(line) from error
        raise
    finally:
        for cli in made:
            cli.release()


class _Parsed(Exception):
    """Raised in place of building anything."""


class _ParsingCLI(RecipeCLI):
    writes = False

    def instantiate_classes(self) -> None:
        raise _Parsed


def settings_of(arguments: list[str]) -> Namespace:
    """All settings of a command line as `run` takes it, defaults included; nothing is built.

    Raises:
        InputError: as `run` would.
    """
    recipe = Path(arguments[2]) if arguments[1:2] == ["--config"] else None
    made: list[RecipeCLI] = []
    be_quiet()
    try:
        _ParsingCLI(arguments, recipe, made)
    except _Parsed:
        return made[0].config[made[0].subcommand]
    except Exception as error:
        if line := explain(error, recipe, arguments, made[0].keys if made else []):
            raise InputError(line) from error
        raise
    raise AssertionError("built something")


def rank() -> int:
    """Of this process, before and after Lightning has begun to distribute."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def be_quiet() -> None:
    """Leave the screen to this project's own lines; warnings that a user should read still come through."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def names_a_class(recipe: Path) -> bool:
    """Whether the recipe's `model` says which LightningModule it is, instead of settings of `SPPOModule`.

    Raises:
        InputError: no valid YAML mapping.
    """
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        what = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else one_line(error)
        raise InputError(f"{recipe}: no valid YAML ({what}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{recipe}: no recipe; write a YAML mapping with the keys model, data and trainer")
    if contains_itself(content):
        raise InputError(f"{recipe}: an anchor (&) refers to a place inside itself; write the values out")
    if {"recipe", "cells"} <= content.keys():
        raise InputError(f"{recipe}: a study, not a recipe; run it with: sppo study {recipe}")
    return isinstance(content.get("model"), dict) and "class_path" in content["model"]


def contains_itself(content: object, inside: tuple[int, ...] = ()) -> bool:
    """Whether a mapping or list is part of itself, as YAML's anchors allow."""
    if not isinstance(content, (dict, list)):
        return False
    if id(content) in inside:
        return True
    parts = content.values() if isinstance(content, dict) else content
    return any(contains_itself(part, (*inside, id(content))) for part in parts)


def offload_asked_for(model: Namespace) -> bool:
    """Whether a recipe's model settings keep networks in the CPU's memory."""
    memory = model.get("memory")
    return bool(memory and memory.get("cpu_offload"))


def check_shares(model: LightningModule, data: LightningDataModule, ranks: int) -> None:
    """Whether an iteration can be cut into minibatches and shared among the ranks; other modules judge for themselves.

    Raises:
        InputError: it cannot.
    """
    if isinstance(model, (SPPOModule, SupervisedModule)) and isinstance(data, MathDataModule):
        check_minibatch(data.problems_per_epoch, model.samples, model.batch_settings.minibatch_size, ranks)


def check_run_name(name: str | None) -> None:
    """Refuse what is not the name of one folder.

    Raises:
        InputError: it is a path, or empty.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise InputError(
            f"--run_name {name!r} is not the name of one folder; give a name without '/' "
            "(--trainer.default_root_dir sets the folder above it)"
        )


def check_trainer(settings: Namespace) -> None:
    """Refuse what this project does not support, before anything is loaded.

    Args:
        settings: the recipe's `trainer`.

    Raises:
        InputError: unknown strategy, float16, clipping where Lightning would do it, or a length in steps.
    """
    if settings.get("max_steps") not in (None, -1):
        raise InputError(
            "trainer.max_steps is not supported: it would count the optimizer steps of policy and critic together; set "
            "trainer.max_epochs (iterations) instead"
        )
    if (settings.get("max_epochs") or 0) < -1:
        raise InputError(f"trainer.max_epochs is {settings.max_epochs}; give the number of iterations, at least 1")
    if settings.get("enable_checkpointing") is False:
        raise InputError(
            "trainer.enable_checkpointing false is not supported: the last iteration is always kept; leave it out, and "
            "set checkpoint.every_n_iterations to save less often"
        )
    if settings.get("barebones"):
        raise InputError("trainer.barebones is not supported: a run needs its callbacks and loggers; leave it out")
    strategy, precision = settings.get("strategy"), str(settings.get("precision"))
    known = {"auto", *StrategyRegistry.available_strategies()} - {"fsdp_cpu_offload"}
    if isinstance(strategy, str) and strategy not in known:
        raise InputError(f"--strategy {strategy} is unknown; use auto, ddp or fsdp")
    if precision in ("16", "16-mixed", "16-true", "transformer-engine-float16"):
        raise InputError(f"--precision {precision} is not supported (float16 needs a gradient scaler); use bf16-mixed")
    if settings.get("gradient_clip_val") is not None:
        raise InputError("trainer.gradient_clip_val has no effect here; set model.policy_optimizer.clip_norm instead")
    if settings.get("accumulate_grad_batches") not in (None, 1):
        raise InputError(
            "trainer.accumulate_grad_batches has no effect here; set model.memory.micro_batch_tokens instead"
        )
