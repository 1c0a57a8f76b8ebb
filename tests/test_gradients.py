"""The gradients of a whole iteration against an independent float64 reference, written from the equations.

The reference knows nothing of chunks, micro-batches, padding or masks: one sequence at a time, full logits.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from sppo_lit.datamodule import MathDataModule, ProblemSet
from sppo_lit.errors import InputError
from sppo_lit.models.loading import ModelSource
from sppo_lit.module import SPPOModule
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.settings import OptimizerSettings, RewardSettings
from sppo_lit.types import RolloutBatch, Sampling

DROPOUT = {"attention_dropout": 0.4}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


class Recorded(SPPOModule):
    """Keeps the weights and the gradients of every optimizer step."""

    steps: list[dict[str, Any]]
    before: Any
    exact = True

    def configure_model(self) -> None:
        super().configure_model()
        if self.exact:
            self.double()

    def on_train_start(self) -> None:
        self.steps = []

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        self.before = copy.deepcopy(self.policy.model)
        super().training_step(batch, batch_idx)

    def _critic_gradient(self, batch: RolloutBatch, pieces: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.steps.append({"critic": copy.deepcopy(self.critic.model), "rows": torch.cat(pieces)})
        return super()._critic_gradient(batch, pieces)

    def _policy_gradient(self, batch: RolloutBatch, pieces: list[torch.Tensor], old: torch.Tensor) -> Any:
        self.steps[-1]["policy"] = copy.deepcopy(self.policy.model)
        return super()._policy_gradient(batch, pieces, old)

    def optimizer_step_clipped(self, optimizer: Any, settings: OptimizerSettings) -> torch.Tensor:
        name, network = ("policy", self.policy) if settings is self.policy_optimizer else ("critic", self.critic)
        self.steps[-1][f"{name}_gradient"] = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.model.parameters()
        ]
        return super().optimizer_step_clipped(optimizer, settings)


def run_iteration(precision: Any = None, **settings: Any) -> Recorded:
    """One real iteration of rollouts and updates on arithmetic, with a tiny policy and a tinier critic."""
    pl.seed_everything(3)
    options: dict[str, Any] = {
        "policy": ModelSource("data/arithmetic/base", "random", {**SMALL, **DROPOUT}),
        "critic": ModelSource("data/arithmetic/base", "random", {**SMALL, **DROPOUT, "num_hidden_layers": 1}),
        "sampling": Sampling(temperature=0.7, max_new_tokens=24),
        "minibatch_size": 8,
        "micro_batch_tokens": 90,
        "policy_optimizer": OptimizerSettings(lr=3e-3),
        "critic_optimizer": OptimizerSettings(lr=3e-3),
        **settings,
    }
    module = Recorded(**options)
    module.exact = precision is None
    # A policy that never solves anything would leave half of the equations untested.
    module.judge = lambda encoded, completions, judge=module.judge: with_successes(*judge(encoded, completions))
    data = MathDataModule(
        ProblemSet("arithmetic"), arithmetic=ArithmeticTask(1, 3), problems_per_epoch=16, max_prompt_tokens=32
    )
    trainer = pl.Trainer(
        max_epochs=1,
        precision=precision or "32-true",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


def with_successes(texts: list[str], verdicts: list[Any]) -> tuple[list[str], list[Any]]:
    """Every third response counts as correct."""
    from dataclasses import replace

    return texts, [replace(v, reward=float(i % 3 == 0)) for i, v in enumerate(verdicts)]


def reference_logprobs(model: Any, prompt: torch.Tensor, response: torch.Tensor, temperature: float) -> torch.Tensor:
    """log π(y_t | s_p, y_<t) from full logits of one unpadded sequence."""
    logits = model.eval()(input_ids=torch.cat([prompt, response])[None]).logits[0].double() / temperature
    probabilities = torch.softmax(logits, dim=-1)
    return torch.stack([torch.log(probabilities[len(prompt) - 1 + t, y]) for t, y in enumerate(response)])


def reference_gradients(module: Recorded, step: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of the critic's and the policy's loss on one minibatch, from the paper's equations."""
    batch, temperature, epsilon, c = module.last_rollout, module.sampling.temperature, 0.2, 3.0
    critic, policy = step["critic"].double(), step["policy"].double()
    critic_loss, policy_loss, tokens = 0.0, 0.0, 0
    for row in step["rows"].tolist():
        prompt = batch.prompt_ids[row, : batch.prompt_lengths[row]]
        response = batch.response_ids[row, : batch.response_lengths[row]]
        reward = float(batch.labels[row])
        # V(s_p): the logit at the prompt's last token.
        logit = critic.score(critic.base_model(input_ids=prompt[None]).last_hidden_state[0, -1])[0]
        value = torch.sigmoid(logit)
        critic_loss = critic_loss - reward * torch.log(value) - (1 - reward) * torch.log(1 - value)
        advantage = reward - float(batch.values[row])
        with torch.no_grad():
            old = reference_logprobs(module.before.double(), prompt, response, temperature)
        for new_t, old_t in zip(reference_logprobs(policy, prompt, response, temperature), old, strict=True):
            ratio = torch.exp(new_t - old_t)
            loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - epsilon, 1 + epsilon))
            policy_loss = policy_loss + (torch.clamp(loss, max=-advantage * c) if advantage < 0 else loss)
            tokens += 1
    (critic_loss / len(step["rows"])).backward()
    (policy_loss / tokens).backward()
    return [p.grad for p in critic.parameters()], [p.grad for p in policy.parameters()]


def assert_close(ours: list[torch.Tensor], reference: list[torch.Tensor], tolerance: float) -> None:
    """Relative to the largest entry of all gradients of the network."""
    scale = max(float(r.abs().max()) for r in reference)
    assert scale > 0
    for a, b in zip(ours, reference, strict=True):
        assert float((a - b).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("ppo_epochs", [1, 2])
def test_gradients_of_a_whole_iteration_equal_the_float64_reference(ppo_epochs: int) -> None:
    module = run_iteration(ppo_epochs=ppo_epochs)
    assert len(module.steps) == 2 * ppo_epochs
    assert module.last_rollout.values.std() == 0, "a new critic's head is zero: V = 0.5 everywhere"
    for step in module.steps:
        critic, policy = reference_gradients(module, step)
        assert_close(step["critic_gradient"], critic, 1e-6)
        assert_close(step["policy_gradient"], policy, 1e-6)


def test_one_micro_batch_of_eight_equals_eight_of_one() -> None:
    whole, pieces = run_iteration(micro_batch_tokens=10**6), run_iteration(micro_batch_tokens=1)
    for a, b in zip(whole.steps, pieces.steps, strict=True):
        assert sorted(a["rows"].tolist()) == sorted(b["rows"].tolist())
        assert_close(a["policy_gradient"], b["policy_gradient"], 1e-6)
        assert_close(a["critic_gradient"], b["critic_gradient"], 1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_first_ratio_is_exactly_one_with_dropout_configured(precision: str) -> None:
    module = run_iteration(precision=precision)
    metrics = module.trainer.callback_metrics
    assert module.policy.model.config.attention_dropout == DROPOUT["attention_dropout"]
    assert metrics["policy/first_ratio_deviation"] == 0
    assert metrics["policy/clip_fraction"] < 1


def test_sampler_logprobs_equal_recomputed_ones_to_float_error() -> None:
    module = run_iteration(precision="32-true")
    assert module.trainer.callback_metrics["rollout/logprob_gap"] < 1e-5


def test_logits_in_chunks_leave_the_gradient_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_iteration()
    monkeypatch.setattr("sppo_lit.models.policy.LOGITS_PER_CHUNK", 28 * 5)
    chunked = run_iteration()
    for a, b in zip(whole.steps, chunked.steps, strict=True):
        assert_close(a["policy_gradient"], b["policy_gradient"], 1e-12)


def test_custom_rewards_and_length_change_what_is_paid_but_not_the_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(response, gold):\n    return 1 / (1 + len(response))\n")
    reward = RewardSettings(correctness=2.0, custom={f"{file}:short": 0.5}, overlong_cache=8, overlong_factor=0.25)
    module = run_iteration("32-true", reward=reward)
    batch, metrics = module.last_rollout, module.trainer.callback_metrics
    assert batch.labels.tolist() == [float(i % 3 == 0) for i in range(16)]
    assert len(batch.rewards.unique()) > 3
    for i, scored in enumerate(batch.scored):
        over = min(max(scored.tokens - 16, 0) / 8, 1.0)
        paid = 2.0 * (i % 3 == 0) + 0.5 / (1 + len(scored.text)) - 0.25 * over
        assert float(batch.rewards[i]) == pytest.approx(paid, abs=1e-6)
    torch.testing.assert_close(batch.advantages, batch.rewards - batch.values)
    assert float(metrics["rollout/reward"]) == pytest.approx(float(batch.rewards.mean()), abs=1e-6)
    assert float(metrics["rollout/accuracy"]) == pytest.approx(6 / 16)


def test_rewards_that_cannot_be_given_are_refused_before_anything_is_loaded() -> None:
    for reward, part in (
        (RewardSettings(custom={"no/such.py:f": 1.0}), "no file"),
        (RewardSettings(overlong_cache=25), "model.reward.overlong_cache is 25"),
    ):
        with pytest.raises(InputError, match=part):
            run_iteration(reward=reward)
