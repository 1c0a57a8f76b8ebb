"""Interfaces between the modules of this project and callbacks.

Callbacks get a typed module from `training_module`; the parts of a module find callbacks that implement one of the
protocols with `callbacks_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import lightning.pytorch as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sppo_lit.errors import InputError
from sppo_lit.settings import EvalSettings, ModelSource, SelectSettings
from sppo_lit.training.metrics import Result
from sppo_lit.types import Encoded, Problem, Rollouts, Scored, Sequences, Verifier


class StopRequests(Protocol):
    """Receives requests to stop a run.

    Attributes:
        signum: the signal that asked this rank to stop; 0 for none.
    """

    signum: int

    def request(self, signum: int) -> None:
        """Stop at the next point where no finished work is lost."""

    def check(self, boundary: bool) -> None:
        """Stop the run if requested; `boundary`: the weights are those of the last finished iteration."""


class ProblemCollector(Protocol):
    """Makes the batch of one iteration."""

    def collect(self, problems: Sequence[Encoded], iteration: int) -> Sequences:
        """The batch that `training_step` receives, from this rank's problems of a 0-based iteration."""


class PoolSelector(Protocol):
    """Chooses the problems of one iteration from a pool."""

    def choose(self, draw: Callable[[], Sequence[Encoded]], count: int) -> list[Encoded]:
        """`count` of the problems that `draw` makes, over all ranks. Collective."""


@runtime_checkable
class _Iterating(Protocol):
    """Attributes that every module has from construction on."""

    seed: int

    @property
    def iteration(self) -> int:
        """Iterations completed; `current_epoch` lags behind it just after a resume."""

    @property
    def evaluates_all_at_start(self) -> bool:
        """Whether the evaluation before training is of all held-out problems, so that later ones compare with it."""

    def validation_results(self) -> dict[str, Result]:
        """Metrics of the running or latest validation by set; see `training.metrics`. Collective."""


@runtime_checkable
class _Constructed(_Iterating, Protocol):
    """Attributes that a module of language models has from construction on."""

    tokenizer: PreTrainedTokenizerBase
    verifier: Verifier
    evaluation: EvalSettings
    last_rollouts: Rollouts | None

    def exports(self) -> Mapping[str, PreTrainedModel]:
        """The trained Hugging Face models by name: "policy", and "critic" if there is one."""

    def sources(self) -> Mapping[str, ModelSource]:
        """Where they came from."""

    def adapter_base(self) -> str | None:
        """Path of the model that the policy's trained adapters belong to; None without, and on top of a merged one."""


class TrainingModule(_Iterating, Protocol):
    """Interface of any module for callbacks.

    Attributes:
        seed: seed of the run.
        stop: receives requests to stop the run; set by `configure_model`.
    """

    stop: StopRequests


class LanguageModule(_Constructed, TrainingModule, Protocol):
    """Interface of a module of language models for callbacks and data module.

    Attributes:
        tokenizer: tokenizer of policy and critic.
        verifier: judges answers.
        evaluation: how held-out problems are answered.
        last_rollouts: rollouts of the latest iteration; None before the first, and in supervised training.
        collector: makes the batch of an iteration; set by `configure_model`.
        selector: chooses an iteration's problems where the data module's `select` asks for it; set by
            `configure_model`, not in supervised training.
    """

    collector: ProblemCollector
    selector: PoolSelector


@runtime_checkable
class PhaseListener(Protocol):
    """A callback that receives the progress of the current phase of an iteration."""

    def on_phase(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        phase: str,
        done: int,
        total: int,
        facts: Mapping[str, float],
    ) -> None:
        """`done` of `total` parts of `phase` are finished; facts such as ``tokens_per_second``."""


@runtime_checkable
class BoundaryKeeper(Protocol):
    """A callback that saves finished iterations.

    Attributes:
        saved_iteration: iterations completed in the last checkpoint, or in the one that the run started from.
    """

    saved_iteration: int

    def save_boundary(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last finished iteration, if not saved yet; no weight has changed since."""


@runtime_checkable
class ResponseStore(Protocol):
    """A callback that stores the responses of an interrupted evaluation."""

    def stored_response(self, number: int, problem: Problem, sample: int) -> Scored | None:
        """The stored response to a problem of validation set `number`, if any."""


@runtime_checkable
class NamedSets(Protocol):
    """A data module whose validation sets have names.

    Attributes:
        val_names: names in the order of their data loaders.
    """

    val_names: list[str]


@runtime_checkable
class IterationProblems(Protocol):
    """A data module whose iterations are equally large.

    Attributes:
        problems_per_epoch: problems of an iteration, over all ranks.
    """

    problems_per_epoch: int


@runtime_checkable
class ProblemPasses(IterationProblems, Protocol):
    """A data module that knows after how many problems they come again.

    Attributes:
        problems_drawn: problems that an iteration draws, from which those of the iteration are chosen.
    """

    problems_drawn: int

    @property
    def problems_in_a_pass(self) -> float | None:
        """Number of training problems after which they come again; infinite if they never do, None if unknown."""


@runtime_checkable
class SelectsProblems(Protocol):
    """A data module whose iterations may choose their problems from a pool.

    Attributes:
        select: how.
    """

    select: SelectSettings


def selection_of(trainer: pl.Trainer) -> SelectSettings:
    """How the data module of a trainer chooses problems; without one, not at all."""
    data = getattr(trainer, "datamodule", None)  # of Lightning; the data may also be a plain data loader
    return data.select if isinstance(data, SelectsProblems) else SelectSettings()


def training_module(pl_module: pl.LightningModule) -> TrainingModule:
    """The module, typed.

    Raises:
        InputError: it lacks attributes that this project's callbacks need.
    """
    if not isinstance(pl_module, _Iterating):
        raise InputError(_foreign(pl_module))
    return cast(TrainingModule, pl_module)


def language_module(pl_module: pl.LightningModule) -> LanguageModule:
    """The module of language models, typed.

    Raises:
        InputError: it lacks attributes that this project's data module, exports and tables of completions need.
    """
    if not isinstance(pl_module, _Constructed):
        raise InputError(_foreign(pl_module))
    return cast(LanguageModule, pl_module)


def _foreign(pl_module: pl.LightningModule) -> str:
    return (
        f"{type(pl_module).__name__} is not a module of sppo-lit; use SPPOModule or SupervisedModule, or leave out the "
        "callbacks and the data module of sppo-lit"
    )


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks of a trainer; Lightning does not declare this attribute."""
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def validation_names(trainer: pl.Trainer) -> list[str]:
    """Names of the validation sets in the order of their data loaders; numbered if the data module has none."""
    sets = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.val_names if isinstance(data, NamedSets) else [f"set{i}" for i in range(len(sets))]
