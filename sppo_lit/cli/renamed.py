"""Settings and classes that were renamed since earlier recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SETTINGS = {
    "samples_per_prompt": "batch.samples_per_prompt",
    "minibatch_size": "batch.minibatch_size",
    "ppo_epochs": "ppo.epochs",
    "clip_low": "ppo.clip_low",
    "clip_high": "ppo.clip_high",
    "dual_clip": "ppo.dual_clip",
    "aggregation": "ppo.aggregation",
    "entropy_coef": "ppo.entropy_coef",
    "value_clip": "ppo.value_clip",
    "old_logprobs": "ppo.old_logprobs",
    "critic_warmup": "ppo.critic_warmup",
    "gamma": "advantage.gamma",
    "lam": "advantage.lam",
    "whiten": "advantage.whiten",
    "drop_equal_groups": "advantage.drop_equal_groups",
    "micro_batch_tokens": "memory.micro_batch_tokens",
    "gradient_checkpointing": "memory.gradient_checkpointing",
    "cpu_offload": "memory.cpu_offload",
    "max_concurrent": "rollout.max_concurrent",
    "max_skipped_steps": "policy_optimizer.max_skipped_steps (and critic_optimizer's)",
}
"""Below `model`, or below `model.init_args` where the recipe names a class."""

DATA = {"data.system": "data.prompt.system"}

CLASSES = {
    "sppo_lit.module.SPPOModule": "sppo_lit.SPPOModule",
    "sppo_lit.supervised.SupervisedModule": "sppo_lit.SupervisedModule",
}


def renamed(error: str, recipe: Path | None, arguments: Sequence[str]) -> str | None:
    """One line with the new names of renamed settings in a recipe and command line; None if there are none.

    Args:
        error: message of the parser.
        recipe: recipe file, a YAML mapping.
        arguments: the command line.
    """
    flags = [part for a in arguments for part in a.removeprefix("--").partition("=")[::2]]
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe else None
    model = _mapping(content, "model")
    kind = str(model.get("class_path", ""))
    own = bool(kind) and not kind.startswith("sppo_lit.")  # a user's class, which may have settings of these names
    written = [kind, *(f"model.{k}" for k in model), *(f"model.init_args.{k}" for k in _mapping(model, "init_args"))]
    written += [f"data.{k}" for k in _mapping(content, "data")]
    renames: dict[str, tuple[str, str]] = {}
    for where, names in (("command line", flags), (str(recipe), written)):
        for name in names:
            refused = not own or f"Option '{name.rpartition('.')[2]}' is not accepted" in error
            if refused and (new := new_name(name)):
                renames.setdefault(name, (where, new))
    if not renames:
        return None
    (old, (where, new)), *others = renames.items()
    line = f"{where}: {old} is now {new}"
    moved = [re.sub(r"^model\.(init_args\.)?", "", name) for _, (_, name) in others]
    return f"{line}; also moved: {', '.join(moved)}" if moved else line


def new_name(old: str) -> str | None:
    """The new name of a dotted key or class path of earlier recipes; None if it was not renamed."""
    if match := re.fullmatch(r"(model\.(?:init_args\.)?)(\w+)", old):
        return match[1] + SETTINGS[match[2]] if match[2] in SETTINGS else None
    return DATA.get(old) or CLASSES.get(old)


def _mapping(content: Any, key: str) -> dict[Any, Any]:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}
