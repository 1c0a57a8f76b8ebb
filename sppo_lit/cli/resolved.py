"""Settings as a run uses them: what a recipe leaves to the algorithm, filled in."""

from __future__ import annotations

import copy
import json
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from sppo_lit.algorithms.specs import algorithm
from sppo_lit.errors import InputError

FROM_ALGORITHM = {
    "batch.samples_per_prompt": "samples_per_prompt",
    "ppo.clip_low": "clip_low",
    "ppo.clip_high": "clip_high",
    "ppo.aggregation": "aggregation",
    "advantage.whiten": "whiten",
}
TOKEN_LEVEL = {"advantage.lam": "lam", "advantage.critic_lam": "critic_lam"}
"""Settings of a model -> fields of `AlgorithmSpec` that hold where they are null; the latter with a token critic."""

LOGGED = ("seed_everything", "model", "data")
LOGGED_OF_TRAINER = ("max_epochs", "check_val_every_n_epoch", "strategy", "devices", "num_nodes", "precision")
"""What loggers get as hyperparameters."""


class RecipeParser(LightningArgumentParser):
    """Prints what the algorithm sets instead of null."""

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """YAML of `cfg`; with the algorithm's own values for `--print_config`, but not where defaults are skipped."""
        printing = hasattr(getattr(self, "parent_parser", self), "print_config")
        if printing and not kwargs.get("skip_default"):
            cfg = with_own_values(cfg)
        return super().dump(cfg, *args, **kwargs)


class SaveSettings(SaveConfigCallback):
    """Saves config.yaml, and gives the loggers the settings as hyperparameters, for hparams.yaml and the like."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log them; on rank zero only."""
        settings = hyperparameters(self.config.get(stage, self.config))
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)


def with_own_values(settings: Namespace) -> Namespace:
    """A copy of a recipe's settings in which what is null and has a value in the algorithm's row has that value."""
    filled = copy.deepcopy(settings)
    model = filled.get("model")
    model = model.get("init_args", model) if model else None
    try:
        spec = algorithm(model.algorithm) if model else None
    except (InputError, AttributeError):  # a run says that it is unknown; supervised training has none
        spec = None
    if spec is None or model is None:
        return filled
    for key, name in (FROM_ALGORITHM | (TOKEN_LEVEL if spec.critic == "token" else {})).items():
        value = getattr(spec, name)
        if model.get(key) is None and isinstance(value, (int, float, str)):
            model[key] = value
    if spec.critic == "token" and model["advantage.critic_lam"] is None:
        model["advantage.critic_lam"] = model["advantage.lam"]
    return filled


def hyperparameters(settings: Namespace) -> dict[str, Any]:
    """The settings that a result depends on, as nested dictionaries of plain values.

    Args:
        settings: settings of the whole recipe.
    """
    filled = with_own_values(settings)
    model = filled.model.get("init_args", filled.model)
    if model.get("evaluation") and model.evaluation.max_new_tokens is None and model.get("sampling"):
        model.evaluation.max_new_tokens = model.sampling.max_new_tokens
    content = filled.as_dict()
    kept = {key: content[key] for key in LOGGED} | {"trainer": {k: content["trainer"][k] for k in LOGGED_OF_TRAINER}}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
