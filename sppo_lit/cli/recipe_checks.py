"""What a recipe's settings must satisfy before anything is built, beyond their types."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import StrategyRegistry

from sppo_lit.algorithms.batching import check_minibatch
from sppo_lit.cli.messages import one_line
from sppo_lit.errors import InputError
from sppo_lit.training.datamodule import MathDataModule
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.selection import check_selection
from sppo_lit.training.supervised import SupervisedModule
from sppo_lit.utils.anchors import ITSELF, contains_itself
from sppo_lit.utils.files import is_name


def named_module(recipe: Path) -> str | None:
    """The `class_path` of a recipe's `model`; None where it has settings of `SPPOModule` instead.

    Raises:
        InputError: the recipe is not a valid YAML mapping.
    """
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else one_line(error)
        raise InputError(f"{recipe}: not valid YAML ({place}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{recipe}: not a recipe; write a YAML mapping with the keys model, data and trainer")
    if contains_itself(content):
        raise InputError(f"{recipe}: {ITSELF}")
    if {"recipe", "cells"} <= content.keys():
        raise InputError(f"{recipe}: a study, not a recipe; run it with: sppo study {recipe}")
    model = content.get("model")
    return str(model["class_path"]) if isinstance(model, dict) and "class_path" in model else None


def check_problems(data: Namespace, stage: str, where: str) -> None:
    """Refuse a run without problems.

    Args:
        data: the recipe's `data`.
        stage: ``fit`` or ``validate``.
        where: names the recipe.

    Raises:
        InputError: it has none.
    """
    if stage == "fit" and not data.train.path:
        raise InputError(
            f"{where}: data.train.path is missing; give it in the recipe or as --data.train.path VALUE ('validate' "
            "does not need it)"
        )
    if stage == "validate" and not data.val:
        raise InputError(
            f"{where}: data.val is empty: there is nothing to evaluate; name a set, e.g. --data.val '[{{path: gsm8k}}]'"
        )


def check_one_process(settings: Namespace) -> None:
    """Refuse what would launch other processes, before they are launched.

    Args:
        settings: the recipe's `trainer`.

    Raises:
        InputError: a strategy, or several devices or nodes.
    """
    if settings.strategy != "auto" or settings.devices not in ("auto", 1, "1") or settings.num_nodes != 1:
        raise InputError(
            "the control benchmark runs in one process on the CPU; leave out --strategy, --devices and --num_nodes"
        )


def check_together(model: LightningModule, data: LightningDataModule, ranks: int) -> None:
    """Check what module and data must agree on; custom modules check for themselves.

    Raises:
        InputError: an iteration does not divide into minibatches and ranks, or there is nothing to choose problems by.
    """
    if isinstance(model, (SPPOModule, SupervisedModule)) and isinstance(data, MathDataModule):
        check_selection(data.select, model.spec if isinstance(model, SPPOModule) else None)
        check_minibatch(data.problems_per_epoch, model.samples, model.batch_settings.minibatch_size, ranks)


REFUSED = {
    "barebones": (True, "it has loggers and callbacks; give a Trainer of your own barebones, in Python"),
    "enable_checkpointing": (False, "a run keeps its last checkpoint; see checkpoint.every_n_iterations"),
    "enable_progress_bar": (False, "a run shows its progress; see progress.plain_every_n_iterations"),
}
"""Settings of the trainer: the refused value, and why."""

LEAST = {
    "check_val_every_n_epoch": (1, "; without evaluations: --data.val null"),
    "limit_train_batches": (1, ": an iteration is one batch"),
}
"""Settings of the trainer: the smallest value, and what to do instead of a smaller one."""

BLAMED = {
    "callback": "trainer.callbacks",
    "Timer": "trainer.max_time, e.g. 00:02:30:00",
    "val_check": "trainer.val_check_interval",
    "limit_": "trainer.limit_val_batches",
    "profiler": "trainer.profiler",
    "plugin": "trainer.plugins",
    "fast_dev_run": "trainer.fast_dev_run",
    "reload_dataloaders": "trainer.reload_dataloaders_every_n_epochs",
    "gradient_clip": "model.policy_optimizer.clip_norm",
}
"""A word in Lightning's message -> the setting that it is about."""


def blamed(text: str) -> str:
    """The setting that a message of Lightning's Trainer is about."""
    found = (setting for word, setting in BLAMED.items() if word in text)
    return next(found, "--accelerator, --devices, --strategy or --precision")


def check_run_name(name: str | None) -> None:
    """Refuse what is not the name of one folder.

    Raises:
        InputError: it is a path, or empty.
    """
    if name is not None and not is_name(name):
        raise InputError(
            f"--run_name {name!r} is not the name of one folder; give a name without '/' "
            "(--trainer.default_root_dir sets the folder above it)"
        )


def check_trainer(settings: Namespace) -> None:
    """Reject unsupported trainer settings before anything is loaded.

    Args:
        settings: the recipe's `trainer`.

    Raises:
        InputError: unknown strategy, float16, what the built-in callbacks are there for, clipping where Lightning would
            do it, or a length in steps.
    """
    if settings.get("max_steps") not in (None, -1):
        raise InputError(
            "trainer.max_steps is not supported: it would count the optimizer steps of policy and critic together; set "
            "trainer.max_epochs (iterations) instead"
        )
    if settings.get("max_epochs") is not None and settings.max_epochs != -1 and settings.max_epochs < 1:
        raise InputError(
            f"trainer.max_epochs is {settings.max_epochs}; give the number of iterations, at least 1 "
            "(-1: without an end)"
        )
    for key, (least, instead) in LEAST.items():
        if settings.get(key) is not None and settings[key] < least:
            raise InputError(f"trainer.{key} is {settings[key]}; it must be at least {least}{instead}")
    if settings.get("overfit_batches"):
        raise InputError("trainer.overfit_batches has no effect here; set data.train.limit instead")
    strategy, precision = settings.get("strategy"), str(settings.get("precision"))
    known = {"auto", *StrategyRegistry.available_strategies()} - {"fsdp_cpu_offload"}
    if isinstance(strategy, str) and strategy not in known:
        raise InputError(f"--strategy {strategy} is unknown; use auto, ddp or fsdp")
    if isinstance(strategy, str) and strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise InputError(
            f"--strategy {strategy} is not supported, since it copies the model into its processes; use ddp"
        )
    if precision in ("16", "16-mixed", "16-true", "transformer-engine-float16"):
        raise InputError(f"--precision {precision} is not supported (float16 needs a gradient scaler); use bf16-mixed")
    for key, (refused, why) in REFUSED.items():
        if settings.get(key) is refused:
            raise InputError(f"trainer.{key}: {str(refused).lower()} is not supported in a recipe: {why}")
    if settings.get("gradient_clip_val") is not None:
        raise InputError("trainer.gradient_clip_val has no effect here; set model.policy_optimizer.clip_norm instead")
    if settings.get("accumulate_grad_batches") not in (None, 1):
        raise InputError(
            "trainer.accumulate_grad_batches has no effect here; set model.memory.micro_batch_tokens instead"
        )
