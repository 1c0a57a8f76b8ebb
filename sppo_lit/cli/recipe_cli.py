"""LightningCLI with this project's module, data, callbacks, loggers and one-line errors."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jsonargparse import ActionConfigFile, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

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
from sppo_lit.cli.loggers import check_loggers, make_loggers, names_of
from sppo_lit.cli.messages import explain, is_lost_connection, one_line
from sppo_lit.cli.precision import faster_precision
from sppo_lit.cli.recipe_checks import (
    blamed,
    check_one_process,
    check_problems,
    check_run_name,
    check_together,
    check_trainer,
    named_module,
)
from sppo_lit.cli.resolved import RecipeParser, SaveSettings
from sppo_lit.cli.resume import (
    FolderLogger,
    RunCSVLogger,
    checkpoint_file,
    response_settings,
    run_of,
    unfinished_run,
    usable_checkpoint,
)
from sppo_lit.control.datamodule import ControlDataModule
from sppo_lit.distributed import processes
from sppo_lit.distributed.strategy import ShardedStrategy
from sppo_lit.errors import InputError, Stopped
from sppo_lit.training.datamodule import MathDataModule
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.protocols import TrainingModule, callbacks_of, training_module
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
"""Built-in callbacks in the order in which they run, by their top-level key in a recipe."""


class RecipeKind(NamedTuple):
    """What a recipe is about.

    Attributes:
        data: class of the data module.
        without: keys of built-in callbacks that have nothing to do.
        responses: whether problems are read, and responses to them written.
    """

    data: type[LightningDataModule]
    without: tuple[str, ...] = ()
    responses: bool = True


LANGUAGE = RecipeKind(MathDataModule)
KINDS = {
    f"sppo_lit.{module}ControlModule": RecipeKind(ControlDataModule, ("completions", "export"), False)
    for module in ("", "control.module.")
}
"""By the `class_path` of a recipe's `model`; all others are `LANGUAGE`."""

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
    ".*in eval mode at the start of training.*",  # transformers loads models in eval mode; dropout is off anyway
    ".*isinstance.treespec, LeafSpec.*",
    ".*Total length of `list` across ranks is zero.*",  # no held-out problems
    ".*when logging on epoch level in distributed setting.*",  # the evaluation reduces its metrics itself
    ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing here changes an output in place
    ".*deprecated.*",
)
"""Lightning's warnings that do not apply here, mostly because the only batch is generated on demand."""

QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)
"""They list devices, advertise other loggers and print the seed."""


class RecipeCLI(LightningCLI):
    """One recipe, one run.

    Args:
        arguments: arguments of LightningCLI, one of `STAGES` first.
        recipe: recipe file among them, if any.
        created: this object is appended to it first, so that it is available if construction, which runs it all, fails.

    Attributes:
        writes: whether it makes a run folder, or goes on with one.
        keys: every key of a recipe.
    """

    writes = True

    def __init__(self, arguments: list[str], recipe: Path | None, created: list[RecipeCLI]) -> None:
        created.append(self)
        self.recipe, self.stage = recipe, arguments[0]
        self.keys: list[str] = []
        self.started = 0  # iterations of the checkpoint that the run starts from
        self.new_folders: list[Path] = []
        self.resumed_folder: Path | None = None
        self.response_settings: dict[str, object] | None = None  # settings that the responses of `validate` depend on
        self._lock: FolderLock | None = None
        self._built_trainer: Trainer | None = None
        self._built_module: TrainingModule | None = None
        named = None if recipe is None else named_module(recipe)
        self.kind = KINDS.get(named or "", LANGUAGE)
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LightningModule if named else SPPOModule,
            self.kind.data,
            subclass_mode_model=named is not None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveSettings,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**strict, **{stage: dict(strict) for stage in self.subcommands()}},
            args=arguments,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that prints the algorithm's own values."""
        parser = RecipeParser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="Recipe.")
        return parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the stage that is asked for: the other one's parser would take as long to build."""
        return {self.stage: LightningCLI.subcommands()[self.stage]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the built-in callbacks, the run's name and wandb."""
        for key, callback in CALLBACKS.items():
            if key in self.kind.without:
                continue
            parser.add_lightning_class_args(callback, key)
        parser.add_argument("--run_name", type=str | None, default=None, help="Folder of the run in lightning_logs.")
        logger = "Loggers beside CSV and TensorBoard, which are always kept: wandb,mlflow."
        parser.add_argument("--logger", type=str | None, default=None, help=logger)
        parser.add_argument("--wandb", type=str | None, default=None, help="As --logger wandb, in this project.")
        self.keys = [action.dest for action in parser._actions]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "validate":
            parser.set_defaults({"verbose": False})  # Lightning's table repeats ours
        return parser

    def _parse_ckpt_path(self) -> None:
        """No-op: hyperparameters come from the recipe, not from the checkpoint."""

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
        check_loggers(names_of(settings.logger, settings.wandb))
        model = settings.model.get("init_args", settings.model)
        if uses_cpu_offload(model) and settings.trainer.strategy != "fsdp":
            raise InputError("model.memory.cpu_offload needs --strategy fsdp; add it, or remove the setting")
        if self.kind.responses:
            check_problems(settings.data, str(self.subcommand), str(self.recipe or "command line"))
        else:
            check_one_process(settings.trainer)
        settings.run_name = self._runs().name  # so that the run's config.yaml finds the same folder
        if settings.get("ckpt_path") is not None:
            resume = self.subcommand == "fit"
            if resume and (folder := run_of(checkpoint_file(settings.ckpt_path, self._runs()), self._runs())):
                self._take(folder)  # before its checkpoint is read: its other process may be writing another one
            file, self.started = usable_checkpoint(settings.ckpt_path, self._runs(), resume)
            settings.ckpt_path = str(file)
            self.resumed_folder = run_of(file, self._runs()) if resume else None
            if self.resumed_folder is None:
                self.release()
            if resume and 0 <= (settings.trainer.max_epochs or -1) <= self.started:
                raise InputError(
                    f"--ckpt_path {file}: it is from iteration {self.started} and the run ends at --max_epochs "
                    f"{settings.trainer.max_epochs}; raise --max_epochs to train on"
                )
        if self.subcommand == "validate":
            # Lightning's, of callbacks that only training needs, such as the timer of max_time.
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
        if self.subcommand == "validate" and self.kind.responses:
            self.response_settings = response_settings(settings)
            if settings.evaluation.resume:
                self.resumed_folder = unfinished_run(self._folder_of_runs(), self.response_settings)
                if self.resumed_folder:
                    self._take(self.resumed_folder)
                    # It may have ended before the lock was taken.
                    if unfinished_run(self._folder_of_runs(), self.response_settings) != self.resumed_folder:
                        self.resumed_folder = None
                        self.release()

    def choose_precision(self) -> None:
        """Take bf16-mixed where the recipe leaves it open and this machine is a CPU that computes it faster."""
        settings = self.config[self.subcommand]
        policy = settings.model.get("init_args", settings.model).get("policy")
        if policy and (precision := faster_precision(settings.trainer, policy)):
            settings.trainer.precision = precision
            if not rank():
                line = f"precision: {precision}, which this CPU computes faster; --precision 32-true for float32"
                console.print(line, soft_wrap=True)

    def instantiate_classes(self) -> None:
        """Load no critic to evaluate weights that do not come from a checkpoint; choose the precision of a CPU."""
        settings = self.config[self.subcommand]
        model = settings.model.get("init_args", settings.model)
        self.choose_precision()
        if "policy_only" in model:
            needed = self.subcommand == "fit" or settings.get("ckpt_path") or model.evaluation["values"]
            model.policy_only = not needed
        super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Last checks before anything is sampled."""
        try:
            self._built_module = training_module(self.model)
        except InputError as error:
            raise InputError(f"{self.recipe}: model.class_path: {error}") from error
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, Evaluation) and self.response_settings is not None:
                callback.keep_responses(self.response_settings)
        if self.subcommand == "validate" and not rank():
            given, source = self.config[self.subcommand].ckpt_path, self.config[self.subcommand].model
            weights = f"checkpoint: {given} (iteration {self.started})" if given else "no checkpoint: the weights of "
            if not given:
                policy = source.get("init_args", source).get("policy")
                weights += str(policy.path) if policy else "the start"
            console.print(weights, markup=False, soft_wrap=True)
        self.config[self.subcommand].ckpt_path = None  # the saved config.yaml must not resume by itself
        if self.subcommand == "fit":
            check_together(self.model, self.datamodule, self.trainer.world_size)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add TensorBoard and CSV loggers in the run's folder to those of the recipe."""
        own = self._get(self.config_init, "trainer").get("logger")
        if self.writes and not self._get(self.config, "trainer").get("fast_dev_run"):
            more = [] if own in (None, True, False) else own if isinstance(own, list) else [own]
            kwargs["logger"] = [*self._loggers(silent=own is False), *more]
        if self._get(self.config_init, "trainer").get("strategy") == "fsdp":
            model = self._get(self.config, "model")
            offload = uses_cpu_offload(model.get("init_args", model))
            kwargs["strategy"] = ShardedStrategy(offload)  # Lightning's own needs a GPU and cannot hold two models
        if self.resumed_folder:
            kwargs["num_sanity_val_steps"] = 0  # the interrupted run has evaluated these weights
        try:
            trainer = self._built_trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException, ModuleNotFoundError) as error:
            text = one_line(error).rstrip(".")
            raise InputError(f"trainer: {text}; correct {blamed(text)}") from error
        processes.watch_ranks(trainer)
        if trainer.num_nodes > 1 and not rank():
            place = os.environ.get("MASTER_ADDR", "this machine")
            how = "start the same command on each, by torchrun or SLURM"
            console.print(f"waiting for all {trainer.num_nodes} nodes at {place}; {how}", soft_wrap=True)
        return trainer

    def _runs(self) -> Path:
        """Folder of this recipe's runs."""
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or "lightning_logs")
        name = self._get(self.config, "run_name")
        if name is None and self.recipe is not None:
            parent = self.recipe.parent.name
            name = self.recipe.stem if parent in ("recipes", "") else f"{parent}-{self.recipe.stem}"
        return root / (name or "run")

    def _folder_of_runs(self) -> Path:
        """Parent of this run's folder: evaluations are kept beside training runs."""
        runs = self._runs()
        return runs if self.subcommand == "fit" else runs.with_name(f"{runs.name}-{self.subcommand}")

    def _loggers(self, silent: bool) -> list[Logger]:
        """Those of the run's folder; one that only gives it, where the recipe wants silence."""
        runs = self._folder_of_runs()
        version = self.resumed_folder.name if self.resumed_folder else self._new_version(runs)
        if silent:
            return [FolderLogger(runs.parent, runs.name, version)]
        csv = RunCSVLogger(runs.parent, runs.name, version, self.started)
        folder = Path(csv.log_dir)
        purge = self.started + 1 if self.resumed_folder else None
        loggers: list[Logger] = [
            csv,
            TensorBoardLogger(
                runs.parent, name=runs.name, version=csv.version, purge_step=purge, default_hp_metric=False
            ),
        ]
        project = self._get(self.config, "wandb")
        names = names_of(self._get(self.config, "logger"), project)
        return [*loggers, *make_loggers(names, f"{runs.name}-{csv.version}", folder, project)]

    def _new_version(self, runs: Path) -> str:
        """Make the next free run folder, which no other process can take at the same time; returns its name."""
        while True:
            numbers = [p.name.removeprefix("version_") for p in runs.glob("version_*")]
            folder = runs / f"version_{max((int(n) for n in numbers if n.isdecimal()), default=-1) + 1}"
            self.new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
            if rank():
                return folder.name
            try:
                runs.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # as in /proc
                raise InputError(f"{runs}: no folder can be made here; change --trainer.default_root_dir") from error
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
        """Processes launched by the trainer."""
        return [] if self._built_trainer is None else processes.launched_ranks(self._built_trainer)

    @property
    def resumable(self) -> bool:
        """Whether this is an interrupted evaluation that the same command would resume."""
        folder = self.resumed_folder or (self.new_folders[0] if self.new_folders else None)
        return self.subcommand == "validate" and folder is not None and has_unfinished(folder / "evaluations")

    def discard_unused_folder(self) -> None:
        """Remove the folders that this run created if they hold no finished iteration, response or bad minibatch."""
        done = 0 if self._built_module is None else self._built_module.iteration
        if rank() or not self.new_folders or (self.subcommand == "fit" and done > self.started) or self.resumable:
            return
        if any(self.new_folders[0].rglob("bad_minibatch-*")):
            return
        shutil.rmtree(self.new_folders[0], ignore_errors=True)
        for parent in self.new_folders[1:]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


C = TypeVar("C", bound=RecipeCLI)


def run(arguments: list[str], kind: type[C]) -> C:
    """Run a LightningCLI of class `kind` on translated arguments, and return it.

    Raises:
        InputError: anything the user can fix, in one line; an empty run folder is removed.
        KeyboardInterrupt: Ctrl-C before anything runs; its argument, if any, is a line still to be printed.
        Stopped: SIGINT or SIGTERM.
    """
    silence_libraries()
    recipe = Path(arguments[2]) if arguments[1:2] == ["--config"] else None
    created: list[RecipeCLI] = []
    try:
        with processes.together():
            return kind(arguments, recipe, created)
    except BaseException as error:
        others = [process for cli in created for process in cli.launched_ranks()]
        if is_lost_connection(error):
            processes.wait_for_end(others)  # the rank that failed first prints why, or its watcher names it
        for cli in created:
            cli.discard_unused_folder()
        processes.end(others, grace=processes.GRACE if isinstance(error, (InputError, Stopped)) else 0.0)
        interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
        if interrupted or isinstance(error, Stopped):
            hint = "; the same command resumes from the responses on disk" if created[0].resumable else ""
            message = "" if created[0].subcommand == "fit" else f"interrupted{hint}"  # `RunSummary` prints that of fit
            if isinstance(error, Stopped):
                raise Stopped(error.signum, message) from error
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has disabled it
            raise KeyboardInterrupt(*([message] if message else [])) from error
        if line := explain(error, recipe, arguments, created[0].keys if created else []):
            raise InputError(line) from error
        raise
    finally:
        for cli in created:
            cli.release()


class _Parsed(Exception):
    """Raised instead of building anything."""


class _ParsingCLI(RecipeCLI):
    writes = False

    def instantiate_classes(self) -> None:
        raise _Parsed


class _CheckingCLI(_ParsingCLI):
    def instantiate_classes(self) -> None:
        built = self.parser.instantiate_classes(self.config)
        check_together(self._get(built, "model"), self._get(built, "data"), ranks=1)
        super().instantiate_classes()


def settings_of(arguments: list[str], check: bool = False) -> Namespace:
    """All settings of a command line of `run`, defaults included; nothing is run.

    Args:
        arguments: as `LightningCLI` takes them.
        check: also build module and data, without their networks and problems, so that they check their settings.

    Raises:
        InputError: as `run` would.
    """
    recipe = Path(arguments[2]) if arguments[1:2] == ["--config"] else None
    created: list[RecipeCLI] = []
    silence_libraries()
    try:
        (_CheckingCLI if check else _ParsingCLI)(arguments, recipe, created)
    except _Parsed:
        return created[0].config[created[0].subcommand]
    except Exception as error:
        if line := explain(error, recipe, arguments, created[0].keys if created else []):
            raise InputError(line) from error
        raise
    raise AssertionError("built something")


def rank() -> int:
    """Global rank of this process, also before Lightning has launched the others."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def silence_libraries() -> None:
    """Silence progress bars and messages of other libraries that do not concern the user."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def uses_cpu_offload(model: Namespace) -> bool:
    """Whether a recipe's model settings offload networks to CPU memory."""
    memory = model.get("memory")
    return bool(memory and memory.get("cpu_offload"))
