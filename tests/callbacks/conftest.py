"""A small module with the interface that callbacks rely on, trained by a real Trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sppo_lit.settings import ModelSource
from sppo_lit.training.metrics import ValidationResults, flatten
from sppo_lit.training.protocols import validation_names
from sppo_lit.types import Problem, Scored, Verdict


def make_scored(key: str, right: bool, sample: int = 0, **fields) -> Scored:
    """A response to problem `key`, correct or not."""
    verdict = Verdict(float(right), "correct" if right else "wrong", "7" if right else "3")
    text = fields.pop("text", rf"so the answer is \boxed{{{verdict.answer}}}")
    return Scored(Problem(key, f"What is {key}?", "7"), text, 12, verdict, sample, value=0.5, **fields)


class Problems(pl.LightningDataModule):
    val_names = ("easy", "hard/2")

    def __init__(self, problems: int = 4):
        super().__init__()
        self.problems = problems

    def train_dataloader(self):
        return DataLoader([0], batch_size=None)

    def val_dataloader(self):
        keys = [[f"{name}-{i}" for i in range(self.problems)] for name in self.val_names]
        return [DataLoader(k, batch_size=2, collate_fn=list) for k in keys]


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        num_labels=1,
    )


class FakeModule(pl.LightningModule):
    """Its greedy accuracy on n problems after iteration i is min(i, n)/n, one sample more is right of `hard`."""

    def __init__(self, samples: int = 2, fail_at: int | None = None, error: type[BaseException] = RuntimeError):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.policy = torch.nn.Module()
        self.policy.model = LlamaForCausalLM(tiny_config())
        self.critic = torch.nn.Module()
        self.critic.model = LlamaForSequenceClassification(tiny_config())
        vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{str(i): i + 3 for i in range(10)}}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        self.register_buffer("iterations", torch.tensor(0))
        self.eval_samples, self.greedy = samples, True
        self.last_rollouts = None
        self.verifier = self.evaluation = None
        self.evaluates_all_at_start = True
        self.seed = 0
        self.results = None
        self.fail_at, self.error = fail_at, error
        self.skill: list[int] | None = None

    @property
    def iteration(self) -> int:
        return int(self.iterations)

    def exports(self):
        networks = {"policy": self.policy, "critic": self.critic}
        return {name: network.model for name, network in networks.items() if network is not None}

    def sources(self):
        return {name: ModelSource("somebody/tiny") for name in self.exports()}

    def adapter_base(self):
        return None

    def validation_results(self):
        return self.results.compute()

    def on_validation_epoch_start(self):
        self.results = ValidationResults(validation_names(self.trainer), self.device)

    def on_validation_epoch_end(self):
        self.log_dict({**flatten(self.validation_results()), "step": float(self.iteration)}, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def phase(self, name: str, done: int, total: int, **facts: float) -> None:
        for callback in self.trainer.callbacks:
            if hasattr(callback, "on_phase"):
                callback.on_phase(self.trainer, self, name, done, total, facts)

    def training_step(self, batch, batch_idx):
        self.phase("sampling", 3, 8, tokens=30, tokens_per_second=1234.5)
        if self.fail_at == self.iteration + 1:
            raise self.error("planned")
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in self.parameters())
        self.manual_backward(loss)
        optimizer.step()
        self.phase("updating", 1, 2)
        self.iterations += 1
        scored = [make_scored(f"train-{i}", i % 2 == 0, advantage=0.5 - i % 2) for i in range(4)]
        self.last_rollouts = SimpleNamespace(scored=scored)
        x = self.iteration
        self.log_dict(
            {
                "rollout/reward": 0.4 + 0.01 * x,
                "rollout/accuracy": 0.4 + 0.01 * x,
                "rollout/response_length": 80.0 + x,
                "rollout/truncation_rate": 0.1,
                "policy/approx_kl": 0.001,
                "policy/entropy": 0.5,
                "critic/value_mean": 0.45,
                "time/rollout": 1.0,
                "time/update": 2.0,
            },
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        skill = self.iteration if self.skill is None else self.skill[self.iteration]
        self.phase("evaluating", batch_idx, 2)
        responses = []
        for key in batch:
            index = int(key.rsplit("-", 1)[1])
            samples = range(self.eval_samples)
            responses += [make_scored(key, index < skill, -1)] if self.greedy else []
            responses += [make_scored(key, index < skill or (dataloader_idx == 1 and s == 0), s) for s in samples]
        self.results.update(dataloader_idx, responses)
        return responses


@pytest.fixture
def fake(tmp_path):
    """`fake(callbacks, epochs, module, **trainer)` trains and returns (trainer, module, run folder)."""

    def run(callbacks, epochs=3, module=None, ckpt_path=None, problems=4, **settings):
        module = module or FakeModule()
        trainer = make_trainer(tmp_path, callbacks, epochs, **settings)
        trainer.fit(module, Problems(problems), ckpt_path=ckpt_path)
        return trainer, module, Path(trainer.log_dir)

    run.module, run.problems = FakeModule, Problems
    run.trainer = lambda callbacks, epochs=3, **settings: make_trainer(tmp_path, callbacks, epochs, **settings)
    run.scored = make_scored
    return run


def make_trainer(folder, callbacks, epochs=3, **settings) -> pl.Trainer:
    from lightning.pytorch.callbacks import ProgressBar

    bar = any(isinstance(c, ProgressBar) for c in callbacks)
    defaults = {"logger": CSVLogger(folder, name="run"), "enable_progress_bar": bar, "num_sanity_val_steps": -1}
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        **(
            {"enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks)}
            | defaults
            | settings
        ),
    )


@pytest.fixture
def screen(monkeypatch):
    """The shared console, recording plain text at a fixed width: `screen()` is what was printed."""
    from sppo_lit.utils import console as shared

    monkeypatch.setattr(shared.console, "_width", 140)
    monkeypatch.setattr(shared.console, "record", True)
    return lambda: shared.console.export_text()
