"""Problems of reasoning-gym's generators (extra ``gym``), each a pure function of settings, split and index."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass, field, fields
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import held_out
from sppo_lit.rewards.gym import check_task, make_task, package
from sppo_lit.types import Problem, TaskGold

_ATTEMPTS = 1000


@dataclass(frozen=True)
class GymTask:
    """A task of reasoning-gym.

    Attributes:
        name: of the task, e.g. ``chain_sum``.
        settings: of its difficulty, by the names of the package; those left out have its defaults.

    Raises:
        InputError: a task that is not allowed, an unknown setting, or the package is not installed.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task(self.name)
        known = self.defaults()
        for key in self.settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(f"{self}: unknown setting {key}; {hint}it has {', '.join(known) or 'none'}")

    def __str__(self) -> str:
        return f"reasoning_gym/{self.name}"

    def defaults(self) -> dict[str, Any]:
        """The settings of the task, with the package's values."""
        config = package().factory.DATASETS[self.name][1]()
        return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("seed", "size")}

    def problem(self, index: int, split: str = "train") -> Problem:
        """Problem number `index`, from 0, of `split` ("train"; anything else is the held-out split).

        Raises:
            InputError: a bad value of a setting, or settings that leave so few problems that none is of this split.
        """
        rng = random.Random(f"{self.name}/{split}/{index}")
        for _ in range(_ATTEMPTS):
            entry = self._entry(rng.getrandbits(31))
            text, answer = str(entry["question"]), str(entry["answer"])
            if answer.strip() and held_out(text) == (split != "train"):
                return Problem(
                    key=f"{self}/{split}/{index}",
                    prompt=text,
                    answer=answer,
                    source=self.name,
                    level=_level(entry["metadata"]),
                    solution=f"\\boxed{{{answer}}}",
                    task=TaskGold(self.name, self.settings, entry),
                )
        raise InputError(f"{self}: settings {self.settings} leave too few different problems for the split {split!r}")

    def _entry(self, seed: int) -> dict[str, Any]:
        """The problem of a seed: question, answer and metadata."""
        try:
            return make_task(self.name, self.settings, seed)[0]  # type: ignore[no-any-return]
        except Exception as error:  # what a value of the wrong type or size leads to
            usual = ", ".join(f"{key}: {value}" for key, value in self.defaults().items())
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self}: bad settings {self.settings}: {reason}; the defaults are {usual}") from error


def _level(metadata: dict[str, Any]) -> int | None:
    """The first property that the settings let vary and the problem states as a whole number."""
    for name, span in (metadata.get("difficulty") or {}).items():
        value = metadata.get(name)
        varies = isinstance(span, (tuple, list)) and len(span) == 2 and span[0] != span[1]
        if varies and isinstance(value, int):
            return value
    return None
