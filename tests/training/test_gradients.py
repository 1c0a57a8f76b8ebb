"""The gradients of a whole iteration against an independent float64 reference, written from the equations.

The reference knows nothing of chunks, micro-batches, padding or masks: one sequence at a time, full logits.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from grouped import grouped

from sppo_lit.errors import InputError
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.settings import CorrectionSettings, KLSettings, ModelSource, OptimizerSettings, RewardSettings
from sppo_lit.training.datamodule import MathDataModule, ProblemSet
from sppo_lit.training.module import SPPOModule
from sppo_lit.types import Intact, Sampling, TrainingBatch

DROPOUT = {"attention_dropout": 0.4}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


class Recorded(SPPOModule):
    """Keeps the weights and the gradients of every optimizer step."""

    steps: list[dict[str, Any]]
    before: Any
    start: Any
    exact = True

    def configure_model(self) -> None:
        super().configure_model()
        if self.exact:
            self.double()

    def on_train_start(self) -> None:
        super().on_train_start()
        self.steps = []
        self.start = copy.deepcopy(self.policy.model)
        for name, updater in (("policy", self.policy_updater), ("critic", self.critic_updater)):
            if updater is not None:
                updater._step_clipped = partial(self.record, name, updater._step_clipped)
        # A policy that never solves anything would leave half of the equations untested.
        calls, judge = itertools.count(), self.sampler.judge
        self.sampler.judge = lambda *drawn: with_successes(*judge(*drawn), first=next(calls) % 2)

    def training_step(self, batch: Intact[TrainingBatch], batch_idx: int) -> None:
        self.before = copy.deepcopy(self.policy.model)
        super().training_step(batch, batch_idx)

    def critic_step(self, batch: TrainingBatch, pieces: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.critic is not None:
            self.steps.append({"critic": copy.deepcopy(self.critic.model), "rows": torch.cat(pieces)})
        return super().critic_step(batch, pieces)

    def policy_step(self, batch: TrainingBatch, pieces: list[torch.Tensor], old: torch.Tensor) -> Any:
        if self.critic is None:
            self.steps.append({"rows": torch.cat(pieces)})
        self.steps[-1]["policy"] = copy.deepcopy(self.policy.model)
        return super().policy_step(batch, pieces, old)

    def record(self, name: str, step: Any) -> torch.Tensor:
        self.steps[-1][f"{name}_gradient"] = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in getattr(self, name).model.parameters()
        ]
        return step()


def run_iteration(
    precision: Any = None, iterations: int = 1, kind: type[Recorded] = Recorded, **settings: Any
) -> Recorded:
    """Real iterations of rollouts and updates on arithmetic, with a tiny policy and a tinier critic."""
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
    problems = options.pop("problems", None)
    module = kind(**grouped(**options))
    module.exact = precision is None
    data = MathDataModule(
        ProblemSet("arithmetic", limit=problems),
        arithmetic=ArithmeticTask(1, 3),
        problems_per_epoch=16,
        max_prompt_tokens=32,
    )
    trainer = pl.Trainer(
        max_epochs=iterations,
        precision=precision or "32-true",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module


def with_successes(texts: list[str], verdicts: list[Any], first: int) -> tuple[list[str], list[Any]]:
    """Every third response counts as correct."""
    return texts, [replace(v, reward=float(i % 3 == first)) for i, v in enumerate(verdicts)]


def reference_logprobs(model: Any, prompt: torch.Tensor, response: torch.Tensor, temperature: float) -> torch.Tensor:
    """log π(y_t | s_p, y_<t) from full logits of one unpadded sequence."""
    logits = model.eval()(input_ids=torch.cat([prompt, response])[None]).logits[0].double() / temperature
    probabilities = torch.softmax(logits, dim=-1)
    return torch.stack([torch.log(probabilities[len(prompt) - 1 + t, y]) for t, y in enumerate(response)])


def reference_gradients(module: Recorded, step: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of the critic's and the policy's loss on one minibatch, from the paper's equations."""
    batch, temperature, epsilon, c = module.last_rollouts, module.sampling.temperature, 0.2, 3.0
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
        others = [float(batch.labels[i]) for i in group_of(row, module.samples) if i != row]
        w = module.advantage.value_weight
        advantage = reward - w * float(batch.values[row]) - (1 - w) * sum(others) / max(len(others), 1)
        with torch.no_grad():
            old = reference_logprobs(module.before.double(), prompt, response, temperature)
        off = (
            torch.exp(old - batch.logprobs[row, : len(response)].double()) if module.corrects else torch.ones_like(old)
        )
        beyond = float(off.prod()) > 3.0
        for t, (new_t, old_t) in enumerate(
            zip(reference_logprobs(policy, prompt, response, temperature), old, strict=True)
        ):
            ratio = torch.exp(new_t - old_t)
            loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - epsilon, 1 + epsilon))
            loss = torch.clamp(loss, max=-advantage * c) if advantage < 0 else loss
            policy_loss = policy_loss + (0.0 if beyond else min(float(off[t]), 2.0)) * loss
            tokens += 1
    (critic_loss / len(step["rows"])).backward()
    (policy_loss / tokens).backward()
    return [p.grad for p in critic.parameters()], [p.grad for p in policy.parameters()]


def group_of(row: int, samples: int) -> range:
    """Rows of the responses to the same prompt."""
    return range(row // samples * samples, row // samples * samples + samples)


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
    assert module.last_rollouts.values.std() == 0, "a new critic's head is zero: V = 0.5 everywhere"
    for step in module.steps:
        critic, policy = reference_gradients(module, step)
        assert_close(step["critic_gradient"], critic, 1e-6)
        assert_close(step["policy_gradient"], policy, 1e-6)


class NoisySampler(Recorded):
    """Learns from responses whose sampler was another distribution than the policy."""

    def training_step(self, batch: Intact[TrainingBatch], batch_idx: int) -> None:
        noise = 0.4 * torch.randn(batch.content.logprobs.shape, generator=torch.Generator().manual_seed(2))
        super().training_step(Intact(replace(batch.content, logprobs=batch.content.logprobs + noise)), batch_idx)


def test_corrected_gradients_equal_the_float64_reference() -> None:
    module = run_iteration(kind=NoisySampler, ppo_epochs=2, correction=CorrectionSettings(enabled=True))
    metrics = module.trainer.callback_metrics
    assert 0 < metrics["rollout/beyond_cap"] < 1 and 0.3 < metrics["rollout/effective_samples"] < 0.99
    assert 0.2 < metrics["rollout/logprob_gap"] < 0.5 < metrics["rollout/logprob_gap_max"]
    assert 0.02 < metrics["rollout/sampler_kl"] < 0.3 and metrics["rollout/staleness"] == 0
    for step in module.steps:
        _, policy = reference_gradients(module, step)
        assert_close(step["policy_gradient"], policy, 1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_gradients_with_a_mixed_baseline_equal_the_float64_reference(weight: float) -> None:
    module = run_iteration(iterations=2, samples_per_prompt=4, value_weight=weight)
    assert len(module.steps) == 16 and module.last_rollouts.values.std() > 0
    for step in module.steps[8:]:
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
    batch, metrics = module.last_rollouts, module.trainer.callback_metrics
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


def test_every_iteration_is_cut_into_other_minibatches() -> None:
    """In a fixed partition the same sequences would share a step in every iteration."""
    rows = [frozenset(step["rows"].tolist()) for step in run_iteration("32-true", iterations=3).steps]
    partitions = [set(rows[i : i + 2]) for i in (0, 2, 4)]
    assert all(frozenset.union(*partition) == set(range(16)) for partition in partitions)
    assert partitions[0] != partitions[1] != partitions[2] != partitions[0]


class ForeignSampler(Recorded):
    """Learns from responses whose sampler told other log-probabilities than the policy has."""

    old: torch.Tensor

    def training_step(self, batch: Intact[TrainingBatch], batch_idx: int) -> None:
        super().training_step(Intact(replace(batch.content, logprobs=batch.content.logprobs - 1)), batch_idx)

    def policy_step(self, batch: TrainingBatch, pieces: list[torch.Tensor], old: torch.Tensor) -> Any:
        self.old = old
        return super().policy_step(batch, pieces, old)


@pytest.mark.parametrize("epochs", [1, 2])
def test_old_logprobs_of_every_response_are_those_of_the_policy(epochs: int) -> None:
    module: Any = run_iteration(kind=ForeignSampler, minibatch_size=4, ppo_epochs=epochs)
    batch = module.last_rollouts
    assert len(module.steps) == 4 * epochs
    for row in range(16):
        prompt = batch.prompt_ids[row, : batch.prompt_lengths[row]]
        response = batch.response_ids[row, : batch.response_lengths[row]]
        with torch.no_grad():
            expected = reference_logprobs(module.before.double(), prompt, response, module.sampling.temperature)
        ours = module.old[row, : len(response)].double()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=f"response {row}")


# ------------------------------------------------------------------------------------------------------- the baselines


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A small model on disk, so that policy and reference policy begin equal."""
    folder = tmp_path_factory.mktemp("start")
    source = ModelSource("data/arithmetic/base", "random", {**SMALL, **DROPOUT})
    tokenizer = load_tokenizer(source)
    torch.manual_seed(5)
    load_causal_lm(source, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(str(folder))


def reference_of(module: Recorded, step: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Gradients of critic and policy on one minibatch by the equations of PPO, GRPO and the like, sequence by sequence.

    Old log-probabilities and values come from the weights before the iteration; advantages are taken from the batch
    where they need more than the minibatch (groups, whitening), which tests/algorithms compares with references. The
    critic's targets are returns with λ = 1.
    """
    batch, temperature, epsilon, c = module.last_rollouts, module.sampling.temperature, 0.2, 3.0
    critic = step["critic"].double() if module.critic is not None else None
    policy = step["policy"].double()
    start = module.start.double() if module.kl.coef else None
    critic_loss, policy_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    lengths = batch.response_lengths[step["rows"]]
    kept = [row for row in step["rows"].tolist() if bool(batch.loss_mask[row].any())]
    tokens = int(batch.response_lengths[kept].sum())
    for row in step["rows"].tolist():
        prompt = batch.prompt_ids[row, : batch.prompt_lengths[row]]
        response = batch.response_ids[row, : batch.response_lengths[row]]
        size = len(response)
        if critic is not None:
            states = critic.base_model(input_ids=torch.cat([prompt, response])[None]).last_hidden_state[0]
            outputs = critic.score(states)[len(prompt) - 1 : len(prompt) - 1 + size, 0]
            target = torch.full_like(outputs, float(batch.labels[row]))
            if options["algorithm"] == "ppo_bce":
                value = torch.sigmoid(outputs)
                loss = -target * torch.log(value) - (1 - target) * torch.log(1 - value)
            else:
                old_value = batch.values[row, :size].double()
                near = torch.minimum(torch.maximum(outputs, old_value - 0.5), old_value + 0.5)
                loss = 0.5 * torch.maximum((outputs - target) ** 2, (near - target) ** 2)
            critic_loss = critic_loss + loss.sum() / lengths.sum()
        if row not in kept:
            continue
        with torch.no_grad():
            old = reference_logprobs(module.before.double(), prompt, response, temperature)
            anchor = reference_logprobs(start, prompt, response, temperature) if start is not None else old
        new = reference_logprobs(policy, prompt, response, temperature)
        advantage = batch.advantages[row].double()
        advantage = advantage[:size] if advantage.ndim else advantage.expand(size)
        if options["algorithm"] == "gspo":
            ratio, low, high = torch.exp((new - old).mean()).expand(size), 3e-4, 4e-4
        else:
            ratio, low, high = torch.exp(new - old), epsilon, epsilon
        loss = torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - low, 1 + high))
        loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * c), loss)
        if module.kl.coef and module.kl.where == "loss":
            loss = loss + module.kl.coef * (torch.exp(anchor - new) - 1 - (anchor - new))
        if module.ppo.entropy_coef:
            logits = policy.eval()(input_ids=torch.cat([prompt, response])[None]).logits[0].double() / temperature
            p = torch.softmax(logits[len(prompt) - 1 : len(prompt) - 1 + size], dim=-1)
            loss = loss + module.ppo.entropy_coef * (p * torch.log(p)).sum(dim=-1)
        weight = {
            "token-mean": 1 / tokens,
            "seq-mean-token-mean": 1 / (len(kept) * size),
            "seq-mean-token-sum-norm": 1 / (len(kept) * module.sampling.max_new_tokens),
        }[module.aggregation]
        policy_loss = policy_loss + weight * loss.sum()
    if critic is not None:
        critic_loss.backward()
    policy_loss.backward()
    return [p.grad for p in critic.parameters()] if critic is not None else [], [p.grad for p in policy.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "ppo", "ppo_epochs": 2},
        {"algorithm": "ppo_bce"},
        {"algorithm": "grpo", "samples_per_prompt": 4, "kl": {"coef": 0.3}, "entropy_coef": 0.1},
        {"algorithm": "dr_grpo", "samples_per_prompt": 2, "drop_equal_groups": True},
        {"algorithm": "gspo", "samples_per_prompt": 4, "policy_optimizer": OptimizerSettings(lr=1e-5)},
        {"algorithm": "rloo", "samples_per_prompt": 4, "aggregation": "seq-mean-token-mean"},
        {"algorithm": "remax"},
        {"algorithm": "reinforce"},
        {"algorithm": "reinforce_pp"},
        {"algorithm": "spo", "problems": 16},
        {"algorithm": "vc_ppo"},
        {"algorithm": "ppo", "lam": 0.8, "critic_lam": 1.0},
    ],
    ids=lambda options: "-".join(
        k if k == "critic_lam" else str(options[k]) for k in ("algorithm", "critic_lam") if k in options
    ),
)
def test_gradients_of_the_baselines_equal_the_float64_reference(options: dict[str, Any], start: ModelSource) -> None:
    kl = KLSettings(**options.get("kl", {}))
    module = run_iteration(iterations=2, **{**options, "kl": kl, "policy": start})
    assert len(module.last_rollouts) == 16 * module.samples
    if options.get("drop_equal_groups"):
        assert 0 < module.last_rollouts.loss_mask.any(dim=1).float().mean() < 1
    for step in module.steps[-2 * module.samples * module.ppo.epochs :]:
        critic, policy = reference_of(module, step, options)
        assert_close(step["policy_gradient"], policy, 1e-6)
        if critic:
            assert_close(step["critic_gradient"], critic, 1e-6)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"ppo_epochs": 2}, "iteration: 16 problems × 1 = 16 sequences, 4 steps"),
        ({"algorithm": "grpo", "samples_per_prompt": 4}, "iteration: 16 problems × 4 = 64 sequences, 8 steps"),
        ({"algorithm": "remax"}, "iteration: 16 problems × 1 = 16 sequences and 16 greedy ones, 2 steps"),
    ],
)
def test_a_run_says_once_how_large_an_iteration_is(
    options: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_iteration("32-true", iterations=2, **options)
    assert [shown for shown in capsys.readouterr().out.splitlines() if "sequences" in shown] == [line]


def test_a_problem_drawn_twice_gets_two_responses(start: ModelSource) -> None:
    batch = run_iteration("32-true", problems=8, policy=start).last_rollouts
    drawn: dict[str, set[tuple[int, str]]] = {}
    for scored in batch.scored:
        drawn.setdefault(scored.problem.key, set()).add((scored.sample, scored.text))
    assert len(drawn) == 8 and all({sample for sample, _ in pair} == {0, 1} for pair in drawn.values())
    assert len({text for pair in drawn.values() for _, text in pair}) > 8


def test_groups_of_equal_verdicts_are_dropped_also_with_a_kl_penalty_in_the_reward(start: ModelSource) -> None:
    kl = KLSettings(coef=0.1, where="reward")
    batch = run_iteration(
        algorithm="rloo", samples_per_prompt=2, iterations=2, kl=kl, drop_equal_groups=True, policy=start
    ).last_rollouts
    differ = (batch.labels.view(-1, 2)[:, 0] != batch.labels.view(-1, 2)[:, 1]).repeat_interleave(2)
    assert torch.equal(batch.loss_mask.any(dim=1), differ) and differ.any()


def test_truncated_sampling_is_said_to_bias_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    run_iteration("32-true", sampling=Sampling(temperature=0.7, max_new_tokens=24, top_k=5))
    assert "sampled with top_p or top_k but learns without" in " ".join(capsys.readouterr().out.split())


def advantages_of(module: Recorded) -> torch.Tensor:
    """[B, T] or [B] of the latest iteration, float64."""
    return module.last_rollouts.advantages.double()


def test_reinforce_is_centred_on_the_iteration(start: ModelSource) -> None:
    module = run_iteration(algorithm="reinforce", policy=start)
    labels = module.last_rollouts.labels.double()
    expected = [float(r) - float(labels.sum() - r) / (len(labels) - 1) for r in labels]
    assert advantages_of(module).tolist() == pytest.approx(expected, abs=1e-6)


def test_reinforce_pp_is_centred_under_the_loss_over_tokens(start: ModelSource) -> None:
    module = run_iteration(algorithm="reinforce_pp", policy=start)
    batch, mask = module.last_rollouts, module.last_rollouts.loss_mask
    by_token = batch.labels.double()[:, None].expand_as(mask)[mask]
    expected = (by_token - by_token.mean()) / by_token.std()
    torch.testing.assert_close(advantages_of(module)[mask], expected, atol=1e-5, rtol=0)
    assert len(batch.response_lengths.unique()) > 3


class Remembered(Recorded):
    """Keeps every iteration's rollouts, and the weights before each and before its last step."""

    history: list[tuple[TrainingBatch, Any, dict[str, Any]]]

    def training_step(self, batch: Intact[TrainingBatch], batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.history = [*getattr(self, "history", []), (batch.content, self.before, self.steps[-1])]


def test_spo_remembers_each_prompt_and_forgets_as_the_policy_moves(start: ModelSource) -> None:
    """Against plain numbers by prompt: 24 problems, 16 an iteration, so that each comes again after one or two."""
    optimizer = OptimizerSettings(lr=1e-3)
    module: Any = run_iteration(
        kind=Remembered, iterations=6, algorithm="spo", problems=24, policy=start, policy_optimizer=optimizer
    )
    tracked: dict[str, list[float]] = {}  # α, β, KL until the last visit
    moved, rhos, again = 0.0, set(), 0
    for batch, before, last in module.history:
        first = sum(a / (a + b) for a, b, _ in tracked.values()) / len(tracked) if tracked else 0.5
        values = []
        for scored in batch.scored:
            a, b, _ = tracked.get(scored.problem.key, (8 * first, 8 * (1 - first), moved))
            values.append(a / (a + b))
        assert batch.values.tolist() == pytest.approx(values, abs=1e-6)
        assert [scored.value for scored in batch.scored] == pytest.approx(values, abs=1e-6)
        errors = [float(r) - v for r, v in zip(batch.labels, values, strict=True)]
        mean = sum(errors) / 16
        deviation = (sum((e - mean) ** 2 for e in errors) / 15) ** 0.5
        assert batch.advantages.tolist() == pytest.approx([(e - mean) / deviation for e in errors], abs=1e-4)
        divergence, tokens = 0.0, 0
        for row in last["rows"].tolist():
            prompt = batch.prompt_ids[row, : batch.prompt_lengths[row]]
            response = batch.response_ids[row, : batch.response_lengths[row]]
            with torch.no_grad():
                old, new = (reference_logprobs(m.double(), prompt, response, 0.7) for m in (before, last["policy"]))
            divergence += float((torch.exp(new - old) - 1 - (new - old)).sum())
            tokens += len(response)
        paid: dict[str, list[float]] = {}  # a problem may close one pass and open the next
        for scored, reward in zip(batch.scored, batch.labels.tolist(), strict=True):
            paid.setdefault(scored.problem.key, []).append(reward)
        for key, rewards in paid.items():
            a, b, seen = tracked.get(key, (8 * first, 8 * (1 - first), moved))
            rho = min(max(2 ** (-(moved - seen) / 0.06), 0.875), 0.96)
            if key in tracked:
                rhos.add(rho)
                again += 1
            tracked[key] = [rho * a + sum(rewards), rho * b + len(rewards) - sum(rewards), moved]
        moved += 2 * divergence / tokens  # measured after one of two steps
    assert again > 60 and len(tracked) == 24 and any(0.875 < rho < 0.96 for rho in rhos)
    metrics = module.trainer.callback_metrics
    assert (metrics["tracker/prompts"], metrics["tracker/seen"]) == (24, 1)
    assert 0 <= float(metrics["tracker/brier"]) <= 1


def test_spo_says_where_no_prompt_comes_again_in_a_run(start: ModelSource, capsys: pytest.CaptureFixture[str]) -> None:
    run_iteration("32-true", iterations=2, algorithm="spo", problems=64, policy=start)
    assert "SPO: no prompt comes again in 2 iterations of 16 of 64 problems" in capsys.readouterr().out
    run_iteration("32-true", iterations=2, algorithm="spo", problems=24, policy=start)
    assert "no prompt" not in capsys.readouterr().out


def test_vc_ppo_takes_its_own_lambda_for_each_response_and_one_for_the_critic(start: ModelSource) -> None:
    module = run_iteration(iterations=2, algorithm="vc_ppo", policy=start, critic_warmup=1, whiten=False)
    batch, found = module.last_rollouts, advantages_of(module)
    values = batch.values.double()
    assert values.std() > 0, "the critic has learned while the policy was frozen"
    assert {"policy" in step for step in module.steps[:2]} == {False}, "the first iteration is the critic's"
    long = 0
    for row, length in enumerate(batch.response_lengths.tolist()):
        lam, ahead = max(1 - 1 / (0.05 * length), 0.0), 0.0
        long += lam > 0
        for t in reversed(range(length)):
            next_value = float(values[row, t + 1]) if t + 1 < length else float(batch.labels[row])
            ahead = next_value - float(values[row, t]) + lam * ahead
            assert float(found[row, t]) == pytest.approx(ahead, abs=1e-5)
        assert batch.targets[row, :length].tolist() == pytest.approx([float(batch.labels[row])] * length, abs=1e-5)
    assert long, "no response is long enough to look ahead"


def test_kl_in_the_reward_is_taken_from_what_is_paid_but_not_from_the_labels(start: ModelSource) -> None:
    kl = KLSettings(0.2, where="reward", estimator="k1")
    module = run_iteration(iterations=2, algorithm="rloo", samples_per_prompt=4, kl=kl, policy=start)
    batch = module.last_rollouts
    gap = torch.zeros(len(batch), dtype=torch.float64)
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row, : batch.prompt_lengths[row]]
        response = batch.response_ids[row, : batch.response_lengths[row]]
        with torch.no_grad():
            before, start = (
                reference_logprobs(m.double(), prompt, response, 0.7) for m in (module.before, module.start)
            )
        gap[row] = (before - start).sum()
    assert gap.abs().max() > 1e-3, "the policy has moved"
    paid = (batch.labels - 0.2 * gap).view(-1, 4)
    expected = paid - (paid.sum(1, keepdim=True) - paid) / 3
    torch.testing.assert_close(batch.advantages.double(), expected.flatten(), atol=1e-5, rtol=0)
    assert set(batch.labels.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"algorithm": "grpo", "samples_per_prompt": 1}, "GRPO needs at least 2"),
        ({"drop_equal_groups": True}, "every group is equal"),
        ({"algorithm": "remax", "critic_warmup": 3}, "ReMax has no critic"),
        ({"critic_lam": 0.9}, "critic_lam: Sequence-Level PPO has no critic of tokens"),
        ({"kl": KLSettings(0.1)}, "has no weights to stay close to"),
        ({"value_weight": 0.5}, "value_weight is 0.5: with one response per prompt there are no others"),
        ({"value_weight": 0.5, "algorithm": "rloo"}, "RLOO has no critic that values prompts"),
        (
            {"algorithm": "trpo"},
            "choose one of: sppo, ppo, ppo_bce, vc_ppo, grpo, gspo, dr_grpo, rloo, remax, reinforce",
        ),
        ({"algorithm": "spo"}, r"makes new problems for ever; set data\.train\.limit"),
    ],
)
def test_settings_that_an_algorithm_cannot_have(options: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        run_iteration(**options)
