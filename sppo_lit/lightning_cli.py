"""LightningCLI with this project's module, data, callbacks, loggers and one-line errors."""

from __future__ import annotations

import logging
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from sppo_lit.callbacks.checkpoint import IterationCheckpoint
from sppo_lit.callbacks.completions import CompletionsTable
from sppo_lit.callbacks.curves import Curves
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.callbacks.export import HuggingFaceExport
from sppo_lit.callbacks.progress import RunProgress
from sppo_lit.callbacks.summary import RunSummary
from sppo_lit.datamodule import MathDataModule
from sppo_lit.errors import InputError
from sppo_lit.module import SPPOModule

CALLBACKS = {
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
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*Consider setting `persistent_workers.*",
    ".*is an instance of `nn.Module` and is already saved.*",
    ".*exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*deprecated.*",
)
"""Lightning's warnings about data loaders, which do not apply where the one batch is made on the spot."""


class RecipeCLI(LightningCLI):
    """One recipe, one run."""

    def __init__(self, arguments: list[str], recipe: Path | None) -> None:
        self.recipe = recipe
        named = recipe is not None and names_a_class(recipe)
        self.new_folder: Path | None = None
        super().__init__(
            LightningModule if named else SPPOModule,
            MathDataModule,
            subclass_mode_model=named,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False},
            args=arguments,
            run=False if not arguments else True,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The built-in callbacks, the run's name and wandb."""
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument("--run_name", type=str | None, default=None, help="Folder of the run in lightning_logs.")
        parser.add_argument("--wandb", type=str | None, default=None, help="Also log to this Weights & Biases project.")

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no hyperparameters: the recipe does."""

    def before_instantiate_classes(self) -> None:
        """Resolve and check the checkpoint before anything is built or written."""
        settings = self.config[self.subcommand]
        if settings.get("ckpt_path"):
            settings.ckpt_path = str(checkpoint_file(settings.ckpt_path, self._runs()))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """With TensorBoard and CSV loggers in the run's folder, unless the recipe brings its own."""
        if self._get(self.config_init, "trainer").get("logger") in (None, True):
            kwargs["logger"] = self._loggers()
        strategy = self._get(self.config_init, "trainer").get("strategy", "auto")
        if strategy == "fsdp":
            raise InputError("--strategy fsdp is not supported yet; use auto or ddp")
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException, ModuleNotFoundError) as error:
            raise InputError(f"trainer: {one_line(error)}") from error

    def _runs(self) -> Path:
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or "lightning_logs")
        name = self._get(self.config, "run_name")
        if name is None and self.recipe is not None:
            parent = self.recipe.parent.name
            name = self.recipe.stem if parent in ("recipes", "") else f"{parent}-{self.recipe.stem}"
        return root / (name or "run")

    def _loggers(self) -> list[Logger]:
        runs = self._runs()
        name = runs.name if self.subcommand == "fit" else f"{runs.name}-{self.subcommand}"
        csv = CSVLogger(runs.parent, name=name)
        folder = Path(csv.log_dir)
        self.new_folder = None if folder.exists() else folder
        loggers: list[Logger] = [csv, TensorBoardLogger(runs.parent, name=name, version=csv.version)]
        if project := self._get(self.config, "wandb"):
            try:
                from lightning.pytorch.loggers import WandbLogger

                loggers.append(WandbLogger(project=project, name=f"{runs.name}-{csv.version}", save_dir=folder))
            except ModuleNotFoundError:
                raise InputError("--wandb needs the extra: pip install 'sppo-lit[wandb]'") from None
        return loggers


def run(arguments: list[str]) -> None:
    """Run LightningCLI on translated arguments.

    Raises:
        InputError: anything the user can mend, in one line; a run folder that holds nothing yet is removed.
    """
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    recipe = Path(arguments[2]) if arguments[1:2] == ["--config"] else None
    cli: list[RecipeCLI] = []

    class Remembered(RecipeCLI):
        def before_instantiate_classes(self) -> None:
            cli.append(self)
            super().before_instantiate_classes()

    try:
        Remembered(arguments, recipe)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{recipe or 'command line'}: {parse_error(error)}") from error
    except InputError:
        _remove_if_unused(cli)
        raise
    except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
        if not _loading_failed(error):
            raise
        _remove_if_unused(cli)
        raise InputError(f"the checkpoint does not fit this recipe: {one_line(error)}") from error


def names_a_class(recipe: Path) -> bool:
    """Whether the recipe's `model` says which LightningModule it is, instead of settings of `SPPOModule`.

    Raises:
        InputError: no valid YAML mapping.
    """
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe}: no valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{recipe}: a recipe is a YAML mapping with the keys model, data and trainer")
    return "class_path" in (content.get("model") or {})


def checkpoint_file(path: str, runs: Path) -> Path:
    """The checkpoint that `--ckpt_path` names; `last` and `best` are looked up in the newest run of this recipe.

    Raises:
        InputError: missing, or no complete checkpoint file.
    """
    if path in ("last", "best"):
        found = sorted(runs.glob(f"version_*/checkpoints/{path}.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise InputError(f"--ckpt_path {path}: no {path}.ckpt in any run under {runs}; train first or give a file")
        return found[-1]
    file = Path(path)
    if not file.exists():
        raise InputError(f"--ckpt_path {path}: no such checkpoint")
    if file.is_file() and not zipfile.is_zipfile(file):
        raise InputError(f"--ckpt_path {path}: the file is damaged or no checkpoint; take another one of its folder")
    return file


def parse_error(error: BaseException) -> str:
    """The part of jsonargparse's message that says what is wrong."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Problem with given class_path", "usage:"))]
    return " ".join(useful[:3])[:400]


def one_line(error: BaseException) -> str:
    """A message folded into one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _loading_failed(error: BaseException) -> bool:
    text = str(error)
    marks = ("loading state_dict", "PytorchStreamReader", "Weights only load failed", "optimizer state")
    return isinstance(error, pickle.UnpicklingError) or any(mark in text for mark in marks)


def _remove_if_unused(cli: list[RecipeCLI]) -> None:
    folder = cli[0].new_folder if cli else None
    if folder is not None and folder.is_dir() and not (folder / "metrics.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent,):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
