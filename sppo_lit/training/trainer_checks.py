"""What of Lightning's Trainer does not work with these modules, refused in one line before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from sppo_lit.errors import InputError
from sppo_lit.settings import OptimizerSettings
from sppo_lit.training.protocols import callbacks_of
from sppo_lit.types import Intact

T = TypeVar("T")

LEAST_LR_OF_BF16 = 1e-4
"""AdamW's steps are at most about the learning rate; one below half the spacing of bfloat16, 6e-5 at a weight of 0.02,
is rounded away."""

REFUSED_CALLBACKS = {
    "StochasticWeightAveraging": "a module with a rollout engine and a verifier cannot be copied",
    "WeightAveraging": "a module with a rollout engine and a verifier cannot be copied",
    "GradientAccumulationScheduler": "set model.memory.micro_batch_tokens instead",
    "LearningRateFinder": "set model.policy_optimizer.lr and model.critic_optimizer.lr instead",
    "BatchSizeFinder": "set model.memory.micro_batch_tokens instead, which is halved when memory runs out",
}
"""By class name, as not every release of Lightning has them all."""


def check_trainer(trainer: pl.Trainer, optimizers: Sequence[OptimizerSettings]) -> None:
    """To be called in `configure_callbacks`: callbacks copy the module as early as in their `setup`.

    Args:
        trainer: of the run.
        optimizers: settings of each.

    Raises:
        InputError: a callback that cannot work, float16, bfloat16 weights with a small learning rate, or a decaying
            learning rate without an end.
    """
    for callback in callbacks_of(trainer):
        for name in (base.__name__ for base in type(callback).__mro__):
            if name in REFUSED_CALLBACKS:
                raise InputError(f"callback {type(callback).__name__} is not supported: {REFUSED_CALLBACKS[name]}")
        if isinstance(callback, ModelCheckpoint) and callback._train_time_interval is not None:
            raise InputError(
                "ModelCheckpoint(train_time_interval=…) saves nothing in manual optimization; set every_n_epochs"
            )
    if trainer.state.fn != "fit":
        return
    if str(trainer.precision).startswith("16"):
        raise InputError(f"precision {trainer.precision} is not supported (it needs a gradient scaler); use bf16-mixed")
    for settings in optimizers:
        if str(trainer.precision) == "bf16-true" and settings.lr < LEAST_LR_OF_BF16:
            raise InputError(
                f"precision bf16-true with a learning rate of {settings.lr:g}: bfloat16 weights cannot take such small "
                f"steps, and most would never change; use bf16-mixed (or a rate of at least {LEAST_LR_OF_BF16:g})"
            )
        if settings.schedule != "constant" and (trainer.max_epochs or 0) < 1:
            raise InputError(
                f"schedule: {settings.schedule} of an optimizer decays to the last iteration; set the trainer's "
                "max_epochs, or schedule: constant"
            )


def content(batch: Intact[T]) -> T:
    """The batch that the data module has made.

    Raises:
        InputError: it comes from somewhere else.
    """
    if not isinstance(batch, Intact):
        raise InputError(
            f"a batch of type {type(batch).__name__}: rollouts are made by the data module; call "
            "trainer.fit(module, datamodule=MathDataModule(…))"
        )
    return batch.content
