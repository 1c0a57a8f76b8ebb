"""Film strips of an episode under the policy that reinforcement learning starts from, and under those it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppo_lit.control.datamodule import HELD_OUT
from sppo_lit.control.episodes import HELD_OUT_USE, episode_keys
from sppo_lit.control.expert import start_policy
from sppo_lit.control.module import ControlModule
from sppo_lit.control.networks import ControlPolicy, Played, play
from sppo_lit.control.sketches import SKETCHES, Sketch
from sppo_lit.errors import InputError
from sppo_lit.study.figures.drawing import saved_figure
from sppo_lit.study.runs import Run, find_runs, grouped, styles
from sppo_lit.utils.console import console
from sppo_lit.utils.plotting import GREEN, GREY, RED

EPISODES, FRAMES = 128, 8
NUMBERS = {"success": "%"}
"""Units of the numbers."""


class Strip(NamedTuple):
    """Held-out episodes of one policy."""

    title: str
    color: str
    played: Played

    @property
    def success(self) -> float:
        """Share of episodes that succeed."""
        return float(self.played.successes.mean())


def draw(sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw a strip for the start of each source and one for each algorithm's first seed, all of one initial state.

    It is the first held-out one from which the start fails; the episodes are those of evaluations, with drawn actions.

    Args:
        sources: studies or runs of the control benchmark, one environment each.
        out: PNG to write; an SVG of the same name beside it.

    Returns:
        By environment and policy: the success rate of the held-out episodes; how many steps the one shown takes, and
        whether it succeeds.

    Raises:
        InputError: a run is not of the control benchmark or has no checkpoint, or matplotlib is not installed.
    """
    blocks = dict(_block([group[0] for group in grouped(find_runs([source])).values()]) for source in sources)
    shown = {name: _first_failure(strips[0].played) for name, strips in blocks.items()}
    rows = [(name, strip) for name, strips in blocks.items() for strip in strips]
    with saved_figure(out, 1.6 + 1.05 * FRAMES, 1.15 * len(rows)) as figure:
        axes = figure.subplots(len(rows), FRAMES, squeeze=False)
        for (name, strip), line in zip(rows, axes, strict=True):
            _draw_strip(line, SKETCHES[name], strip, shown[name])
    return {
        name: {strip.title: {"success": strip.success, **_facts(strip.played, shown[name])} for strip in strips}
        for name, strips in blocks.items()
    }


def _block(runs: Sequence[Run]) -> tuple[str, list[Strip]]:
    """The environment's name, and strips of its start and of every run."""
    looks, strips = styles(runs), list[Strip]()
    for run in runs:
        file = run.folder / "checkpoints" / "last.ckpt"
        if not file.is_file():
            raise InputError(f"{file}: no such checkpoint; give runs that were not cut down")
        try:
            module = ControlModule.load_from_checkpoint(file)
        except (TypeError, KeyError) as error:
            raise InputError(f"{file}: not of the control benchmark; give its runs or studies") from error
        if not strips:
            start = ControlPolicy(module.task, module.hidden)
            start.load_state_dict(start_policy(module.environment, module.task, module.hidden, module.start, _say))
            strips.append(Strip("start", GREY, _episodes(module, start)))
        strips.append(Strip(looks[run.label].title, looks[run.label].color, _episodes(module, module.policy)))
    return module.environment, strips


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _episodes(module: ControlModule, policy: ControlPolicy) -> Played:
    states = range(HELD_OUT, HELD_OUT + EPISODES)
    keys = episode_keys(module.seed, HELD_OUT_USE, module.environment, states, [0] * EPISODES)
    return play(module.task.make(), policy, states, keys, module.task.horizon)


def _first_failure(played: Played) -> int:
    return int(played.successes.argmin())


def _facts(played: Played, row: int) -> dict[str, Any]:
    return {"steps": int(played.lengths[row]), "succeeds": bool(played.successes[row])}


def _draw_strip(axes: Sequence[Any], sketch: Sketch, strip: Strip, row: int) -> None:
    length, success = int(strip.played.lengths[row]), bool(strip.played.successes[row])
    observed = np.concatenate(
        [strip.played.observations[row, :length].numpy(), strip.played.last[row : row + 1].numpy()]
    )
    steps = np.linspace(0, length, FRAMES).round().astype(int)
    moving, quantity = sketch.lines(observed), sketch.quantity(observed)
    (left, bottom), (right, top) = sketch.window
    for axis, step in zip(axes, steps, strict=True):
        for line in sketch.scenery:
            axis.plot(*np.array(line).T, color=GREY, linewidth=0.8)
        for lines in moving:
            axis.plot(*lines[step].T, color=strip.color, linewidth=1.6, solid_capstyle="round")
        axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="#DDDDDD")
        axis.set_xlabel(f"{step}: {sketch.shown.format(quantity[step])}", fontsize=7)
    outcome = axes[-1]
    outcome.spines[:].set(visible=True, color=GREEN if success else RED, linewidth=1.6)
    outcome.set_title("solved" if success else "failed", fontsize=7.5, loc="right", color=GREEN if success else RED)
    axes[0].set_ylabel(f"{strip.title}\n{strip.success:.0%}", rotation=0, ha="right", va="center", fontsize=8)
