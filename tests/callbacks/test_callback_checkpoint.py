"""Checkpoints lie on iteration boundaries, are whole or absent, and resume to the right number of iterations."""

import os
import shutil
from collections import namedtuple

import pytest
import torch

from sppo_lit.callbacks import Evaluation, IterationCheckpoint
from sppo_lit.callbacks import checkpoint as module_under_test
from sppo_lit.errors import InputError


def iterations(path):
    return int(torch.load(path, weights_only=True)["state_dict"]["iterations"])


def test_last_and_best(fake):
    module = fake.module()
    module.skill = [0, 1, 3, 2, 2, 2]  # best after iteration 2
    checkpoint = IterationCheckpoint(every_n_iterations=2)
    _, _, folder = fake([Evaluation(), checkpoint], epochs=5, module=module)
    files = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert files == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert iterations(folder / "checkpoints/previous.ckpt") == 4
    assert iterations(folder / "checkpoints/best.ckpt") == 2
    assert iterations(folder / "checkpoints/last.ckpt") == 5, "the last iteration, though 5 is no multiple of 2"
    assert checkpoint.best_model_path == str(folder / "checkpoints/best.ckpt")
    assert checkpoint.best_model_score == 0.75 and checkpoint.last_model_path.endswith("last.ckpt")


def test_best_only_where_an_evaluation_ran(fake):
    module = fake.module()
    module.skill = [0, 4, 1, 4, 2, 4, 1]  # evaluated: 2, 4 and 6
    _, _, folder = fake([Evaluation(), IterationCheckpoint()], epochs=6, module=module, check_val_every_n_epoch=2)
    assert iterations(folder / "checkpoints/best.ckpt") == 4


def test_without_evaluation_there_is_a_last_one(fake):
    _, _, folder = fake([IterationCheckpoint()], epochs=2, limit_val_batches=0)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("every", [1, 2])
def test_resumed_run_does_the_missing_iterations_and_no_more(fake, every):
    _, whole, _ = fake([Evaluation(), IterationCheckpoint()], epochs=5, check_val_every_n_epoch=every)
    _, _, folder = fake([Evaluation(), IterationCheckpoint()], epochs=2, check_val_every_n_epoch=every)
    trainer, resumed, _ = fake(
        [Evaluation(), IterationCheckpoint()],
        epochs=5,
        ckpt_path=folder / "checkpoints/last.ckpt",
        check_val_every_n_epoch=every,
    )
    assert resumed.iteration == 5 and trainer.current_epoch == 5
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_best_of_another_folder_is_not_mistaken_for_this_runs(fake):
    module = fake.module()
    module.skill = [0, 4, 4, 1, 2]
    _, _, folder = fake([Evaluation(), IterationCheckpoint()], epochs=2, module=module)
    again, checkpoint = fake.module(), IterationCheckpoint()
    again.skill = module.skill
    last = folder / "checkpoints/last.ckpt"
    _, _, new = fake([Evaluation(), checkpoint], epochs=4, module=again, ckpt_path=last)
    assert (
        checkpoint.best_model_path == str(new / "checkpoints/best.ckpt") and iterations(checkpoint.best_model_path) > 2
    )


def test_interrupted_run_keeps_its_last_whole_iteration(fake):
    with pytest.raises(RuntimeError, match="planned"):
        fake([IterationCheckpoint()], epochs=9, module=fake.module(fail_at=4), limit_val_batches=0)
    trainer = fake.trainer([])
    folder = os.path.join(os.path.dirname(trainer.log_dir), "version_0", "checkpoints")
    assert (
        sorted(os.listdir(folder)) == ["last.ckpt", "previous.ckpt"]
        and iterations(os.path.join(folder, "last.ckpt")) == 3
    )


def test_failed_save_leaves_the_old_checkpoint(fake, monkeypatch):
    trainer = fake.trainer([IterationCheckpoint()], epochs=3, limit_val_batches=0)
    save = type(trainer.strategy).save_checkpoint

    def torn(strategy, state, path, storage_options=None):
        if state["epoch"] == 2:
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError("disk quota exceeded")
        save(strategy, state, path, storage_options)

    monkeypatch.setattr(type(trainer.strategy), "save_checkpoint", torn)
    with pytest.raises(OSError, match="quota"):
        trainer.fit(fake.module(), fake.problems())
    folder = os.path.join(trainer.log_dir, "checkpoints")
    assert (
        sorted(os.listdir(folder)) == ["last.ckpt", "previous.ckpt"]
        and iterations(os.path.join(folder, "last.ckpt")) == 2
    )


def test_full_disk_is_one_clear_line_before_training(fake, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    module = fake.module()
    with pytest.raises(InputError) as error:
        fake([IterationCheckpoint()], module=module)
    line = str(error.value)
    assert "checkpoints" in line and "1 are free" in line and "needs about" in line and "\n" not in line
    assert module.iteration == 0


def test_estimate_is_near_the_real_size(fake):
    _, module, folder = fake([IterationCheckpoint()], epochs=1)
    weights = sum(p.numel() for p in module.parameters()) * 4
    assert module_under_test.checkpoint_bytes(module) == pytest.approx(3 * weights, rel=0.05)
    assert os.path.getsize(folder / "checkpoints/last.ckpt") > 2.5 * weights
