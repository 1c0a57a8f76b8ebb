"""Loggers of Lightning by name, beside the CSV and TensorBoard files that every run keeps."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger

from sppo_lit.errors import InputError

KEPT = ("csv", "tensorboard")
"""Every run has these; naming them changes nothing."""
PROJECT = "sppo-lit"
"""Project of Weights & Biases, or experiment of MLflow, unless another is given."""


def names_of(given: str | None, wandb_project: str | None) -> list[str]:
    """Names of the loggers that `--logger` and `--wandb` ask for, without those that are always kept.

    Args:
        given: names with commas between them.
        wandb_project: a project asks for wandb too.

    Raises:
        InputError: a name is not known.
    """
    names = [name.strip().lower() for name in (given or "").split(",") if name.strip()]
    for name in names:
        if name not in (*KEPT, *LOGGERS):
            known = ", ".join((*KEPT, *LOGGERS))
            raise InputError(f"--logger {name} is unknown; give {known}, or any other in the recipe's trainer.logger")
    asked = dict.fromkeys([*names, *(["wandb"] if wandb_project else [])])
    return [name for name in asked if name not in KEPT]


def check_loggers(names: list[str]) -> None:
    """Check packages and logins before anything is built.

    Raises:
        InputError: the extra of a logger is not installed, or nobody is logged in.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(f"--logger {name} needs the extra: pip install 'sppo-lit[{name}]'") from None
    if "wandb" in names and os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise InputError("--logger wandb: no login; run 'wandb login', or log to files by WANDB_MODE=offline")


def make_loggers(names: list[str], run_name: str, folder: Path, project: str | None) -> list[Logger]:
    """The loggers of these names.

    Args:
        names: see `names_of`.
        run_name: what the run is called there.
        folder: run folder.
        project: project of Weights & Biases.
    """
    return [LOGGERS[name](run_name, folder, project or PROJECT) for name in names]


def _wandb(run_name: str, folder: Path, project: str) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project=project, name=run_name, save_dir=folder)


def _mlflow(run_name: str, folder: Path, project: str) -> Logger:
    """To the server that MLFLOW_TRACKING_URI names, else to a database beside the runs of all recipes."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    place = os.environ.get("MLFLOW_TRACKING_URI")
    local = folder.absolute().parents[1]
    return MLFlowLogger(
        experiment_name=PROJECT,
        run_name=run_name,
        tracking_uri=place or f"sqlite:///{local / 'mlflow.db'}",
        artifact_location=None if place else str(local / "mlflow"),
    )


LOGGERS: dict[str, Callable[[str, Path, str], Logger]] = {"wandb": _wandb, "mlflow": _mlflow}
"""Name -> maker, from the name of a run, its folder and the project."""
