"""Mistakes of every kind on the command line: one line that names the place, exit code 2, nothing left behind."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from cli_helpers import recipe, refused

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]

MISTAKES = {
    "rum RECIPE": "a stage is one of",
    "run recipes/tiny.yml": "no such file",
    "run fit ''": "is a folder",
    "run RECIPE --": "unknown flag",
    "run RECIPE --max_epochs": "expected one argument",
    "run RECIPE --max_epochs=": "max_epochs",
    "run RECIPE --max_epochs 1e3": "max_epochs",
    "run RECIPE --max_epochs nan": "max_epochs",
    "run RECIPE --devices=-3": "devices",
    "run RECIPE --devices 1.5": "devices",
    "run RECIPE --num_nodes 0": "num_nodes",
    "run RECIPE --num_nodes=-1": "num_nodes",
    "run RECIPE --strategy ''": "strategy",
    "run RECIPE --accelerator ''": "accelerator",
    "run RECIPE --precision ''": "precision",
    "run RECIPE --trainer.callbacks 5": "callbacks",
    "run RECIPE --trainer.callbacks '[5]'": "callbacks",
    "run RECIPE --trainer.logger nothing": "logger",
    "run RECIPE --trainer.profiler nothing": "profiler",
    "run RECIPE --trainer.check_val_every_n_epoch 0": "check_val_every_n_epoch",
    "run RECIPE --trainer.check_val_every_n_epoch=-2": "check_val_every_n_epoch",
    "run RECIPE --trainer.val_check_interval 5.5": "val_check_interval",
    "run RECIPE --trainer.limit_val_batches=-1": "limit_val_batches",
    "run RECIPE --trainer.limit_train_batches 0": "limit_train_batches",
    "run RECIPE --trainer.overfit_batches 2": "overfit_batches",
    "run RECIPE --trainer.reload_dataloaders_every_n_epochs=-1": "reload_dataloaders_every_n_epochs",
    "run RECIPE --trainer.gradient_clip_algorithm blah": "gradient_clip_algorithm",
    "run RECIPE --trainer.inference_mode maybe": "inference_mode",
    "run RECIPE --trainer.plugins nope": "plugins",
    "run RECIPE --model.batch.samples_per_prompt 0": "samples_per_prompt",
    "run RECIPE --model.batch.samples_per_prompt=-2": "samples_per_prompt",
    "run RECIPE --model.ppo.epochs 0": "epochs",
    "run RECIPE --model.ppo.clip_low=-0.1": "clip_low",
    "run RECIPE --model.ppo.clip_low 1.5": "clip_low",
    "run RECIPE --model.ppo.clip_high nan": "clip_high",
    "run RECIPE --model.ppo.dual_clip 0.5": "dual_clip",
    "run RECIPE --model.ppo.aggregation mean": "aggregation",
    "run RECIPE --model.ppo.entropy_coef inf": "entropy_coef",
    "run RECIPE --model.ppo.entropy_coef .nan": "entropy_coef",
    "run RECIPE --model.ppo.value_clip=-0.5": "value_clip",
    "run RECIPE --model.ppo.critic_warmup=-5": "critic_warmup",
    "run RECIPE --model.advantage.critic_lam 95": "critic_lam",
    "run RECIPE --model.advantage.gamma 2": "gamma",
    "run RECIPE --model.advantage.lam=-1": "lam",
    "run RECIPE --model.kl.coef=-1": "coef",
    "run RECIPE --model.kl.coef nan": "coef",
    "run RECIPE --model.memory.micro_batch_tokens 0": "micro_batch_tokens",
    "run RECIPE --model.rollout.max_concurrent 0": "max_concurrent",
    "run RECIPE --model.rollout.engine magic": "is unknown; choose",
    "run RECIPE --model.verifier.workers 0": "workers",
    "run RECIPE --model.verifier.deadline=-1": "deadline",
    "run RECIPE --model.verifier.deadline nan": "deadline",
    "run RECIPE --model.verifier.kind magic": "kind",
    "run RECIPE --model.lora.rank 0": "rank",
    "run RECIPE --model.policy_optimizer.lr=-1": "lr",
    "run RECIPE --model.policy_optimizer.lr nan": "lr",
    "run RECIPE --model.policy_optimizer.clip_norm=-1": "clip_norm",
    "run RECIPE --model.evaluation.chunk 0": "chunk",
    "run RECIPE --model.sampling.temperature nan": "temperature",
    "run RECIPE --model.sampling.temperature inf": "temperature",
    "run RECIPE --data.problems_per_epoch 1.5": "problems_per_epoch",
    "run RECIPE --data.max_prompt_tokens=-1": "max_prompt_tokens",
    "run RECIPE --data.train.limit 0": "limit",
    "run RECIPE --data.train.path ''": "path",
    "run RECIPE --data.arithmetic.min_operations 9 --data.arithmetic.max_operations 2": "min_operations",
    "run RECIPE --data.arithmetic.largest 0": "largest",
    "run RECIPE --data.arithmetic.max_operations 0": "max_operations",
    "run RECIPE --data.val 5": "val",
    "run RECIPE --data.val '[5]'": "val",
    "run RECIPE --data.val '[{path: arithmetic, limit: -1}]'": "limit is -1",
    "run RECIPE --clock.max_seconds=-5": "max_seconds",
    "run RECIPE --clock.max_tokens 0": "max_tokens",
    "run RECIPE --clock.evaluations=-1": "evaluations",
    "run RECIPE --clock.max_seconds nan": "max_seconds",
    "run RECIPE --checkpoint.every_n_iterations 0": "checkpoint: every_n_iterations is 0; it must be at least 1",
    "run RECIPE --checkpoint.every_n_iterations=-1": "checkpoint: every_n_iterations is -1",
    "run RECIPE --checkpoint.mode best": "checkpoint: mode is best; it must be max or min",
    "run RECIPE --checkpoint.monitor ''": "checkpoint: monitor is ''",
    "run RECIPE --completions.samples=-1": "completions: samples is -1; it must be at least 1",
    "run RECIPE --completions.samples 0": "every_n_iterations 0",
    "run RECIPE --completions.every_n_iterations=-1": "completions: every_n_iterations is -1",
    "run RECIPE --completions.characters 0": "completions: characters is 0; it must be at least 10",
    "run RECIPE --progress.plain_every_n_iterations 0": "progress: plain_every_n_iterations is 0",
    "run RECIPE --progress.refresh_per_second 0": "progress: refresh_per_second is 0",
    "run RECIPE --progress.refresh_per_second .nan": "progress: refresh_per_second is nan",
    "run RECIPE --curves.filename ''": "curves: filename is ''",
    "run RECIPE --export.folder a/b": "export: folder is 'a/b'",
    "run RECIPE --export.folder ..": "export: folder is '..'",
    "run RECIPE --model.evaluation.greedy false": "nothing to evaluate",
    "run RECIPE --model.evaluation.at_start 0": "at_start",
    "run RECIPE --run_name a/b": "run_name",
    "run validate RECIPE": "is empty: there is nothing",
    "run validate RECIPE --ckpt_path best --data.val '[{path: arithmetic, limit: 2}]'": "ckpt_path",
    "run fit RECIPE --ckpt_path RECIPE": "damaged or not a checkpoint",
    "doctor": "no recipe given",
    "doctor recipes/none.yaml": "no such file",
    "doctor RECIPE --problems 1": "at least 2 are needed",
    "doctor RECIPE --problems x": "invalid int value",
    "doctor RECIPE --memory x --no-load": "invalid float value",
    "doctor RECIPE --memory=-5 --no-load": "memory",
    "audit": "required: DATASET",
    "audit nosuch.jsonl": "No data file",
    "study": "required: FILE",
    "study none.yaml": "no such file",
    "figure": "required: NAME",
    "figure nosuch": "is unknown; choose",
    "figure efficiency nosuchfolder": "no such folder",
    "list --frob": "frob",
    "run RECIPE --strategy ddp_spawn": "ddp_spawn is not supported",
    "run RECIPE --max_epochs 0": "trainer.max_epochs is 0",
    "run RECIPE --ckpt_path ''": "no such checkpoint",
    "run RECIPE --model.policy.path own_callback.py": "a file",
    "run RECIPE --model.policy.config.hidden_size 7": "The hidden size (7) is not a multiple",
    "run RECIPE --model.rollout.engine own_callback.py:Own": "it is called with (settings, model, eos_ids, pad_id",
    "run RECIPE --model.verifier.kind own_callback.py:Own": "it is called with (settings, functions)",
    "audit own.jsonl --completions /dev/null": "/dev/null: no completions in it",
    "run RECIPE --ckpt_path recipes": "a folder, and not a sharded checkpoint",
    "run RECIPE --model.critic 3": "--model.critic.path 3",
    "run RECIPE --model.lora 3": "--model.lora.KEY VALUE",
    "run RECIPE --trainer.max_time soon": "correct trainer.max_time",
    "run RECIPE --trainer.callbacks '[{class_path: \"own_callback:Own\"}]'": "write own_callback.Own",
    "run RECIPE --trainer.callbacks '[{class_path: own_callback.Onw}]'": "has no attribute 'Onw'",
    "run RECIPE --model.policy '{path: nosuch/model}'": "not in the Hub's cache",
    "run RECIPE --data.train.path nosuch/set": "not in the Hub's cache",
}
"""Command line (RECIPE: a sound one) -> what the line says."""


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Libraries are imported before any answer is timed."""
    from sppo_lit.cli.main import main

    assert main(["run", "recipes/quickstart.yaml", "--max_epochs", "0"]) == 2


@pytest.mark.parametrize("line", MISTAKES)
def test_one_line(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("own_callback.py").write_text("from lightning import Callback\n\n\nclass Own(Callback):\n    pass\n")
    Path("own.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    file = recipe(tmp_path)
    arguments = [str(file) if part == "RECIPE" else part for part in shlex.split(line)]
    start = time.process_time()
    refused(capsys, tmp_path, arguments, MISTAKES[line])
    assert time.process_time() - start < 5  # of this process, however busy the machine is
