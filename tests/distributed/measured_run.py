"""Two iterations of a random model on two ranks, without files: `measured_run.py FOLDER SETTINGS`, settings as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import lightning
from tracked_memory import TrackedMemory

import sppo_lit as sl
from sppo_lit.distributed.strategy import ShardedStrategy


def main(folder: str, s: dict[str, Any]) -> None:
    lightning.seed_everything(1)
    model = sl.ModelSource(s["path"], init="random", config=s["config"])
    module = sl.SPPOModule(
        model,
        model,
        sampling=sl.Sampling(max_new_tokens=s["response"]),
        batch=sl.BatchSettings(minibatch_size=s["sequences"]),
        ppo=sl.PPOSettings(old_logprobs="sampler"),
        verifier=sl.VerifierSettings(workers=1),
        memory=sl.MemorySettings(micro_batch_tokens=s["tokens"], offload_while_sampling=s["offload"]),
    )
    data = sl.MathDataModule(
        sl.ProblemSet("arithmetic"), [], problems_per_epoch=s["sequences"], max_prompt_tokens=s["prompt"]
    )
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy=ShardedStrategy(),
        precision=s["precision"],
        callbacks=[TrackedMemory(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
