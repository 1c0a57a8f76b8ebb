"""A table of sampled completions with verdict, value and advantage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich import box
from rich.table import Table
from rich.text import Text

from sppo_lit.errors import refuse
from sppo_lit.training.protocols import language_module
from sppo_lit.types import Scored
from sppo_lit.utils.console import console, shorten, visible

ANSWER_WIDTH = 12
"""Columns of a gold answer and of an answer; longer ones are folded."""


class CompletionsTable(Callback):
    """Prints a table of completions after the first and then every n-th iteration.

    Args:
        every_n_iterations: how often; 0 disables it.
        samples: number of rows.
        characters: maximum characters of a prompt; of a response, the last 2 × `characters` are shown.

    Raises:
        InputError: a number that leaves nothing to show.
    """

    def __init__(self, every_n_iterations: int = 10, samples: int = 4, characters: int = 200) -> None:
        refuse(
            "completions",
            every_n_iterations=(every_n_iterations, every_n_iterations >= 0, "at least 0 (0: no tables)"),
            samples=(samples, samples >= 1, "at least 1; without tables: every_n_iterations 0"),
            characters=(characters, characters >= 10, "at least 10"),
        )
        self.every_n_iterations = every_n_iterations
        self.samples = samples
        self.characters = characters
        self._shown = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print completions that were just trained on (those of rank zero)."""
        module = language_module(pl_module)
        rollouts = module.last_rollouts
        if not trainer.is_global_zero or self.every_n_iterations < 1 or rollouts is None:
            return
        iteration = module.iteration
        if not self._shown or iteration % self.every_n_iterations == 0:
            self._shown += 1
            console.print(table(pick(rollouts.scored, self.samples), iteration, self.characters))


def pick(scored: Sequence[Scored], count: int) -> list[Scored]:
    """Up to `count` completions, alternating between correct and other ones."""
    right = [s for s in scored if s.verdict.reward > 0.5]
    other = [s for s in scored if s.verdict.reward <= 0.5]
    return [s for pair in zip_longest(right, other) for s in pair if s is not None][:count]


def table(scored: Sequence[Scored], iteration: int, characters: int = 200) -> Table:
    """The completions as a table for a terminal; nothing in their text acts as markup or control character.

    Args:
        scored: the completions, one row each.
        iteration: iterations completed.
        characters: see `CompletionsTable`.
    """
    shown = Table(
        title=f"Completions of iteration {iteration}", title_justify="left", title_style="bold", box=box.ROUNDED
    )
    shown.show_lines = True
    shown.add_column("prompt", ratio=3, overflow="fold", min_width=len("prompt"))
    shown.add_column("response", ratio=5, overflow="fold", min_width=len("response"))
    for name in ("gold", "answer"):  # no share of the width, which would cut their heading on a narrow screen
        shown.add_column(name, overflow="fold", min_width=len(name), max_width=ANSWER_WIDTH)
    shown.add_column("verdict", no_wrap=True)
    shown.expand = True
    for s in scored:
        right = s.verdict.reward > 0.5
        verdict = Text(("✓ " if right else "✗ ") + s.verdict.reason.replace("_", " "), "green" if right else "red")
        verdict.append(f"\n{s.tokens} tokens\n", "dim").append_text(number("V", s.value))
        verdict.append("  ").append_text(number("A", s.advantage, signed=True))
        shown.add_row(
            Text(shorten(visible(s.problem.prompt.strip()), characters, "both")),
            response(s.text, 2 * characters),
            Text(shorten(visible(s.problem.answer), 60)),
            Text(shorten(visible(s.verdict.answer), 60)) if s.verdict.answer is not None else Text("–", "dim"),
            verdict,
        )
    return shown


def response(text: str, limit: int) -> Text:
    r"""The end of a response, its last ``\boxed{…}`` in bold."""
    shown = Text(shorten(visible(text.strip()), limit, "end"))
    start = shown.plain.rfind("\\boxed{")
    if start >= 0:
        shown.stylize("bold cyan", start, _closing_brace(shown.plain, start))
    return shown


def _closing_brace(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0 and text[i] == "}":
            return i + 1
    return len(text)


def number(name: str, value: float | None, signed: bool = False) -> Text:
    """A value or advantage with its name and two digits; – for None."""
    if value is None:
        return Text(f"{name} –", "dim")
    style = "" if not signed else "green" if value > 0 else "red"
    return Text.assemble((f"{name} ", "dim"), (f"{value:+.2f}" if signed else f"{value:.2f}", style))
