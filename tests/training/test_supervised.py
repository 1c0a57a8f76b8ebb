"""Supervised warm-up: the loss falls, and its gradient is that of cross-entropy over full logits."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from grouped import grouped

from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.settings import ModelSource, OptimizerSettings
from sppo_lit.training.datamodule import MathDataModule, ProblemSet
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.supervised import SolutionCollector, SupervisedModule
from sppo_lit.types import Intact, Problem, Sampling, Sequences

RUNTIME = Runtime.single(torch.device("cpu"))
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


class Recorded(SupervisedModule):
    """Keeps the first step's weights and gradient, and the loss of every iteration."""

    batch: Sequences
    before: Any
    gradient: Any = None
    losses: list[float]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.losses = []
        self.updater._step_clipped = partial(self.record, self.updater._step_clipped)

    def training_step(self, batch: Intact[Sequences], batch_idx: int) -> None:
        if not self.losses:
            self.before, self.batch = copy.deepcopy(self.policy.model), batch.content
        super().training_step(batch, batch_idx)
        self.losses.append(float(self.trainer.callback_metrics["policy/loss"]))

    def record(self, step: Any) -> torch.Tensor:
        if self.gradient is None:
            self.gradient = [p.grad.clone() for p in self.policy.model.parameters()]
        return step()


def run(iterations: int, **settings: Any) -> Recorded:
    pl.seed_everything(3)
    module = Recorded(
        ModelSource("data/arithmetic/base", "random", SMALL),
        Sampling(max_new_tokens=24),
        policy_optimizer=OptimizerSettings(lr=1e-2),
        **grouped(**settings),
    )
    data = MathDataModule(
        ProblemSet("arithmetic"), arithmetic=ArithmeticTask(1, 3), problems_per_epoch=16, max_prompt_tokens=32
    )
    options: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    pl.Trainer(max_epochs=iterations, accelerator="cpu", **options).fit(module, data)
    return module


def test_a_few_iterations_reduce_the_loss() -> None:
    losses = run(12, minibatch_size=8).losses
    assert len(losses) == 12
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2]), losses


@pytest.mark.parametrize("micro_batch_tokens", [1, 90, 10**6])
def test_gradient_and_loss_are_those_of_cross_entropy_over_full_logits(micro_batch_tokens: int) -> None:
    module = run(1, minibatch_size=16, micro_batch_tokens=micro_batch_tokens)
    model, batch = module.before, module.batch
    total: Any = 0.0
    for i, length in enumerate(batch.response_lengths.tolist()):
        prompt = batch.prompt_ids[i, : batch.prompt_lengths[i]]
        response = batch.response_ids[i, :length]
        assert int(response[-1]) == module.tokenizer.eos_token_id
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        total = total + F.cross_entropy(logits, response, reduction="sum")
    loss = total / int(batch.response_lengths.sum())
    loss.backward()
    assert module.losses[0] == pytest.approx(float(loss.detach()), rel=1e-4)
    scale = max(float(p.grad.abs().max()) for p in model.parameters())
    for ours, parameter in zip(module.gradient, model.parameters(), strict=True):
        assert float((ours - parameter.grad).abs().max()) < 1e-4 * scale


def test_a_problem_without_a_worked_solution_is_named() -> None:
    module = SupervisedModule(ModelSource("data/arithmetic/base", "random", SMALL))
    with pytest.raises(InputError, match="set/7: no worked solution"):
        SolutionCollector(module.tokenizer, 1, RUNTIME).collect([(Problem("set/7", "1+1=", "2"), [1, 2])], 0)


def test_a_gradient_that_is_not_finite_skips_its_step_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Recorded.loss
    calls: list[float] = []

    def poisoned(self: Recorded, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(float("nan") if len(calls) == 1 else 1.0)
        return {name: value * calls[-1] for name, value in whole(self, *arguments).items()}

    monkeypatch.setattr(Recorded, "loss", poisoned)
    module = run(1, minibatch_size=8)
    metrics = module.trainer.callback_metrics
    assert len(calls) == 2 and float(metrics["policy/skipped_steps"]) == 1
    assert float(metrics["policy/grad_norm"]) > 0
    assert all(bool(p.isfinite().all()) for p in module.policy.parameters())


def test_every_iteration_is_cut_into_other_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    loss = SupervisedModule.loss

    def recorded(self: SupervisedModule, solutions: Sequences, tokens: int, piece: torch.Tensor) -> Any:
        rows.extend(piece.tolist())
        return loss(self, solutions, tokens, piece)

    monkeypatch.setattr(SupervisedModule, "loss", recorded)
    run(3, minibatch_size=8)
    assert len(rows) == 48
    partitions = [{frozenset(rows[i : i + 8]), frozenset(rows[i + 8 : i + 16])} for i in (0, 16, 32)]
    assert all(frozenset.union(*partition) == set(range(16)) for partition in partitions)
    assert partitions[0] != partitions[1] != partitions[2] != partitions[0]
