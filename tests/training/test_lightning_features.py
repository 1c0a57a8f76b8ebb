"""Callbacks, loggers and flags of Lightning, with a plain Trainer and in a recipe: they work, or one line says why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cli_helpers import BASE, HELD_OUT, SMALL, recipe, refused
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from run_files import csv_rows
from torch.utils.data import DataLoader

from sppo_lit import (
    BatchSettings,
    EvalSettings,
    Evaluation,
    HuggingFaceExport,
    IterationCheckpoint,
    MathDataModule,
    ModelSource,
    OptimizerSettings,
    ProblemSet,
    Sampling,
    SPPOModule,
    SupervisedModule,
    VerifierSettings,
    standard_trainer,
)
from sppo_lit.callbacks.clock import Clock
from sppo_lit.callbacks.signals import StopSignals
from sppo_lit.callbacks.standard import DEFAULTS
from sppo_lit.cli.main import main
from sppo_lit.cli.recipe_cli import CALLBACKS, TRAINER_DEFAULTS
from sppo_lit.errors import InputError
from sppo_lit.training.protocols import callbacks_of

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
POLICY = ModelSource(str(BASE), init="random", config=dict(SMALL))
STEPS = 4
"""Optimizer steps of an iteration: two minibatches, two networks."""


def make(**settings: Any) -> SPPOModule:
    pl.seed_everything(3, verbose=False)
    chosen: dict[str, Any] = {
        "batch": BatchSettings(minibatch_size=4),
        "sampling": Sampling(max_new_tokens=8),
        "policy_optimizer": OptimizerSettings(lr=1e-3),
        "critic_optimizer": OptimizerSettings(lr=1e-2),
        "verifier": VerifierSettings(workers=1),
    }
    return SPPOModule(POLICY, **{**chosen, **settings})


def problems(held_out: bool = True) -> MathDataModule:
    val = [ProblemSet("arithmetic", limit=4)] if held_out else []
    return MathDataModule(ProblemSet("arithmetic"), val, problems_per_epoch=8, max_prompt_tokens=64)


def trainer(folder: Path, *callbacks: Callback, **flags: Any) -> pl.Trainer:
    """As a user would make one, but quiet and without files that a test does not look at."""
    quiet: dict[str, Any] = {
        "logger": False,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    common: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "max_epochs": 2}
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **common, **flags})


def fit(folder: Path, *callbacks: Callback, held_out: bool = True, **flags: Any) -> tuple[pl.Trainer, SPPOModule]:
    module, used = make(), trainer(folder, *callbacks, **flags)
    used.fit(module, datamodule=problems(held_out))
    return used, module


# ------------------------------------------------------------------------------------------------ callbacks and loggers


def test_early_stopping_by_held_out_accuracy(tmp_path: Path) -> None:
    stop = EarlyStopping("val/accuracy", mode="max", patience=2)
    used, module = fit(tmp_path, stop, max_epochs=9)
    assert stop.stopped_epoch > 0 and module.iteration == used.current_epoch == stop.stopped_epoch + 1 < 9
    with pytest.raises(RuntimeError, match="val/accuracy` which is not available"):
        fit(tmp_path, EarlyStopping("val/accuracy"), held_out=False)


def test_model_checkpoint_resumes_and_validates(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max", save_last=True, filename="best")
    used, module = fit(tmp_path, keep, max_epochs=3)
    assert keep.best_model_path == str(tmp_path / "best.ckpt") and keep.best_model_score is not None
    [numbers] = used.validate(module, datamodule=problems(), ckpt_path="best", verbose=False)
    assert numbers["val/accuracy"] == pytest.approx(float(keep.best_model_score))

    straight = fit(tmp_path, max_epochs=5)[1]
    resumed, again = make(), trainer(tmp_path, max_epochs=5)
    again.fit(resumed, datamodule=problems(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.iteration == 5
    for (name, old), new in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_validation_resumes_with_the_next_iteration(tmp_path: Path) -> None:
    """Where not every iteration is evaluated, `ModelCheckpoint` saves before the epoch has ended."""
    fit(tmp_path, ModelCheckpoint(tmp_path, monitor="val/accuracy"), max_epochs=2, check_val_every_n_epoch=2)
    [checkpoint] = tmp_path.glob("*.ckpt")
    resumed, logger = make(), CSVLogger(tmp_path)
    trainer(tmp_path, max_epochs=4, check_val_every_n_epoch=2, logger=logger).fit(
        resumed, datamodule=problems(), ckpt_path=str(checkpoint)
    )
    rows = csv_rows(Path(logger.log_dir) / "metrics.csv")
    assert resumed.iteration == 4
    assert [row["step"] for row in rows if row["policy/loss"]] == ["3", "4"]


def test_load_from_checkpoint(tmp_path: Path) -> None:
    _, module = fit(tmp_path, ModelCheckpoint(tmp_path))
    [checkpoint] = tmp_path.glob("*.ckpt")
    loaded = SPPOModule.load_from_checkpoint(checkpoint)
    assert loaded.iteration == 2
    assert loaded.policy_source == POLICY and loaded.policy_optimizer == module.policy_optimizer
    assert loaded.rollout == module.rollout and loaded.batch_settings == module.batch_settings
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    changed = SPPOModule.load_from_checkpoint(checkpoint, sampling=Sampling(max_new_tokens=5))
    assert changed.sampling.max_new_tokens == 5 and changed.policy_source == POLICY


def test_csv_logger_has_rollouts_and_validation_by_iteration(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, LearningRateMonitor(), DeviceStatsMonitor(), logger=logger, max_epochs=3)
    rows = csv_rows(Path(logger.log_dir) / "metrics.csv")
    for metric in ("rollout/reward", "policy/loss", "critic/brier", "val/accuracy"):
        assert [row["step"] for row in rows if row[metric]] == ["1", "2", "3"], metric
    rates = [(row["step"], float(row["lr-AdamW/pg1"])) for row in rows if row["lr-AdamW/pg1"]]
    assert ("1", 1e-3) in rates and ("2", 1e-3) in rates


def test_callbacks_of_this_package_with_a_plain_trainer(tmp_path: Path) -> None:
    evaluation = Evaluation()
    fit(
        tmp_path, evaluation, IterationCheckpoint(), HuggingFaceExport(), logger=TensorBoardLogger(tmp_path, version="")
    )
    run = tmp_path / "lightning_logs"
    assert [iteration for iteration, _ in evaluation.history] == [0, 1, 2]
    assert {"best.ckpt", "last.ckpt"} <= {file.name for file in (run / "checkpoints").iterdir()}
    assert (run / "hf" / "policy" / "model.safetensors").is_file() and (run / "hf" / "critic").is_dir()
    assert len(list((run / "evaluations").iterdir())) == 3


@pytest.mark.curves
def test_the_standard_trainer_is_that_of_a_run_by_recipe(tmp_path: Path) -> None:
    own = [Clock(max_tokens=10), EarlyStopping("val/accuracy", mode="max")]
    first = standard_trainer(tmp_path, "mine", own, max_epochs=5, accelerator="cpu")
    module = make()
    first.fit(module, datamodule=problems())
    assert module.iteration == 1, "the budget of the own clock"
    run = tmp_path / "mine" / "version_0"
    for file in ("metrics.csv", "curves.png", "checkpoints/last.ckpt", "hf/policy/config.json"):
        assert (run / file).is_file(), file
    assert len(list((run / "evaluations").iterdir())) == 2 and list(run.glob("events*"))
    kinds = [kind for kind in CALLBACKS.values() if kind is not StopSignals]
    chosen = [type(c) for c in callbacks_of(first) if type(c) in kinds]
    assert chosen == sorted(kinds, key=lambda kind: kind is IterationCheckpoint)  # which Lightning puts last
    assert {"max_epochs": 100, **DEFAULTS} == TRAINER_DEFAULTS
    again = standard_trainer(tmp_path, "mine", enable_progress_bar=True)
    assert again.log_dir == str(tmp_path / "mine" / "version_1")


def test_supervised_module_with_a_plain_trainer(tmp_path: Path) -> None:
    module = SupervisedModule(
        POLICY,
        batch=BatchSettings(minibatch_size=4),
        sampling=Sampling(max_new_tokens=8),
        verifier=VerifierSettings(workers=1),
    )
    keep = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    trainer(tmp_path, EarlyStopping("val/accuracy", mode="max"), keep).fit(module, datamodule=problems())
    assert module.iteration == 2 and Path(keep.best_model_path).is_file()
    assert SupervisedModule.load_from_checkpoint(keep.best_model_path).sampling == module.sampling


# ------------------------------------------------------------------------------------------------ flags of the trainer


@pytest.mark.parametrize(
    ("flags", "iterations"),
    [
        ({"profiler": "simple"}, 2),
        ({"max_steps": 2 * STEPS, "max_epochs": -1}, 2),
        ({"max_steps": 3, "max_epochs": -1}, 1),  # an iteration is never cut
        ({"limit_val_batches": 0}, 2),
        ({"num_sanity_val_steps": 0}, 2),
        ({"enable_checkpointing": False}, 2),
        ({"overfit_batches": 1}, 2),
        ({"detect_anomaly": True}, 2),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_flags_that_work(tmp_path: Path, flags: dict[str, Any], iterations: int) -> None:
    used, module = fit(tmp_path, **flags)
    assert module.iteration == iterations and used.global_step == STEPS * iterations
    assert ("val/accuracy" in used.callback_metrics) == (flags.get("limit_val_batches") != 0)


def test_barebones(tmp_path: Path) -> None:
    module = make()
    pl.Trainer(barebones=True, accelerator="cpu", devices=1, max_epochs=2, default_root_dir=tmp_path).fit(
        module, datamodule=problems()
    )
    assert module.iteration == 2


def test_a_trial_leaves_no_files(tmp_path: Path) -> None:
    _, module = fit(tmp_path, Evaluation(), IterationCheckpoint(), HuggingFaceExport(), fast_dev_run=True)
    assert module.iteration == 1 and not list(tmp_path.rglob("*"))


class Sizes(Callback):
    """Problems of every evaluation."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen += [int(result["problems"]) for result in pl_module.validation_results().values()]


def test_a_small_evaluation_before_training_is_not_what_later_ones_are_compared_with(tmp_path: Path) -> None:
    module, sizes, evaluation = make(evaluation=EvalSettings(at_start=3)), Sizes(), Evaluation()
    trainer(tmp_path, sizes, evaluation, num_sanity_val_steps=-1).fit(module, datamodule=problems())
    assert sizes.seen == [3, 4, 4]
    assert [iteration for iteration, _ in evaluation.history] == [1, 2]
    assert evaluation.first["arithmetic"]["problems"] == 4


class OutOfMemory(Callback):
    """Memory runs out once in a pass without gradient of each network, and once in the first step of each optimizer."""

    def __init__(self) -> None:
        self.times = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *facts: Any) -> None:
        if pl_module.iteration == 0:
            self.fail_once(pl_module.policy, "forward", lambda ids, *rest: len(ids) > 1 and not torch.is_grad_enabled())
            for updater in (pl_module.policy_updater, pl_module.critic_updater):
                self.fail_once(updater._optimizer, "step", lambda: True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.fail_once(pl_module.critic, "forward", lambda ids, *rest: len(ids) > 1)

    def fail_once(self, owner: Any, name: str, here: Callable[..., bool]) -> None:
        inner, failed = getattr(owner, name), []

        def outer(*arguments: Any) -> Any:
            if not failed and here(*arguments):
                failed.append(True)
                self.times += 1
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return inner(*arguments)

        setattr(owner, name, outer)


def test_memory_that_runs_out_in_a_pass_without_gradient_or_an_optimizer_step_changes_nothing(tmp_path: Path) -> None:
    straight, trouble = fit(tmp_path, held_out=False)[1], OutOfMemory()
    disturbed = fit(tmp_path, trouble, held_out=False)[1]
    assert trouble.times == 4 and disturbed.budget.tokens == straight.budget.tokens // 4
    for (name, one), other in zip(straight.state_dict().items(), disturbed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5, msg=name)


# ------------------------------------------------------------------------------------------------- refused in one line


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: StochasticWeightAveraging(1e-3), "cannot be copied"),
        (lambda: GradientAccumulationScheduler({0: 2}), "micro_batch_tokens"),
        (lambda: LearningRateFinder(), "model.policy_optimizer.lr"),
        (lambda: BatchSizeFinder(), "micro_batch_tokens"),
        (lambda: ModelCheckpoint(train_time_interval=timedelta(seconds=1)), "every_n_epochs"),
    ],
    ids=["swa", "accumulation", "lr_finder", "batch_finder", "time_interval"],
)
def test_callbacks_that_cannot_work(tmp_path: Path, callback: Callable[[], Callback], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, callback())


def test_ema_is_refused_where_lightning_has_it(tmp_path: Path) -> None:
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("this Lightning has no EMAWeightAveraging")
    with pytest.raises(InputError, match="EMAWeightAveraging is not supported"):
        fit(tmp_path, averaging())


def test_flags_that_cannot_work(tmp_path: Path) -> None:
    for flags in ({"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}):
        with pytest.raises(MisconfigurationException, match="not supported for manual optimization"):
            fit(tmp_path, **flags)
    decaying = make(critic_optimizer=OptimizerSettings(lr=1e-2, schedule="cosine"))
    with pytest.raises(InputError, match=r"schedule: cosine .* max_epochs"):
        trainer(tmp_path, max_epochs=-1, max_steps=8).fit(decaying, datamodule=problems())


def test_problems_must_come_from_the_data_module(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="datamodule=MathDataModule"):
        trainer(tmp_path).fit(make(), DataLoader([1]))
    with pytest.raises(InputError, match=r"data\.train\.path is missing"):
        trainer(tmp_path).fit(make(), datamodule=MathDataModule(val=[ProblemSet("arithmetic", limit=4)]))


# ---------------------------------------------------------------------------------------------------------- in a recipe


def entry(class_path: str, /, **settings: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": settings}


def test_callbacks_and_loggers_in_a_recipe(tmp_path: Path) -> None:
    chosen = [
        entry("EarlyStopping", monitor="val/accuracy", mode="max", patience=1),
        entry("ModelCheckpoint", monitor="val/accuracy", mode="max", filename="own"),
        entry("LearningRateMonitor"),
        entry("Timer", duration={"hours": 1}, interval="step"),
    ]
    changes = {
        **HELD_OUT,
        "trainer.max_epochs": 9,
        "trainer.callbacks": chosen,
        "trainer.logger": {
            **entry("CSVLogger"),
            "init_args": {"save_dir": str(tmp_path), "name": "", "version": "logs"},
        },
    }
    assert main(["run", str(recipe(tmp_path, changes))]) == 0
    rows = csv_rows(tmp_path / "logs" / "metrics.csv")
    last = int(rows[-1]["step"])
    assert last < 9 and any(row["step"] == str(last) and row["val/accuracy"] for row in rows)
    [folder] = (tmp_path / "runs" / "tiny").glob("version_*")  # with the default loggers, beside the recipe's own
    assert (folder / "checkpoints" / "own.ckpt").is_file()


def test_a_trial_of_a_recipe_leaves_no_files(tmp_path: Path) -> None:
    file = recipe(tmp_path, {**HELD_OUT, "trainer.fast_dev_run": True})
    assert main(["run", str(file)]) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"trainer.barebones": True}, ["trainer.barebones", "in Python"]),
        ({"trainer.enable_checkpointing": False}, ["trainer.enable_checkpointing", "checkpoint.every_n_iterations"]),
        ({"trainer.enable_progress_bar": False}, ["progress.plain_every_n_iterations"]),
        ({"trainer.callbacks": [entry("RichProgressBar")]}, ["progress bar", "correct trainer.callbacks"]),
        ({"trainer.callbacks": [entry("Timer", duration={"hours": 1})]}, ["type Interval", "as text (step)"]),
        ({"trainer.callbacks": [entry("StochasticWeightAveraging", swa_lrs=1e-3)]}, ["StochasticWeightAveraging"]),
    ],
    ids=["barebones", "checkpointing", "progress", "second_bar", "enum", "swa"],
)
def test_what_a_recipe_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], parts: list[str]
) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], *parts)


def test_early_stopping_without_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"trainer.callbacks": [entry("EarlyStopping", monitor="val/accuracy")]}
    assert main(["run", str(recipe(tmp_path, changes))]) == 2
    assert "EarlyStopping looks at val/accuracy, which is not logged" in capsys.readouterr().err


def test_timer_of_lightning(tmp_path: Path) -> None:
    _, module = fit(tmp_path, Timer(duration={"seconds": 1}), max_epochs=-1)
    assert module.iteration >= 1
