"""Settings of a module by their plain names, put into the groups that they belong to."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from sppo_lit.settings import AdvantageSettings, BatchSettings, MemorySettings, PPOSettings, RolloutSettings

GROUPS: dict[str, Any] = {
    "batch": BatchSettings(),
    "ppo": PPOSettings(),
    "advantage": AdvantageSettings(),
    "memory": MemorySettings(),
    "rollout": RolloutSettings(),
}


PLAIN = {"epochs": "ppo_epochs"}


def grouped(**settings: Any) -> dict[str, Any]:
    """Arguments of `SPPOModule` or `SupervisedModule`: ``minibatch_size=8`` becomes ``batch=BatchSettings(…)``."""
    arguments = dict(settings)
    for name, group in GROUPS.items():
        plain = {f.name: PLAIN.get(f.name, f.name) for f in fields(group)}
        own = {field: arguments.pop(key) for field, key in plain.items() if key in arguments}
        if own:
            arguments[name] = replace(group, **own)
    return arguments
