"""Checks before a long run, on the recipe's own models and problems; a failed check says what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sppo_lit.algorithms.batching import pad_rows
from sppo_lit.algorithms.masking import masked_sum, response_mask
from sppo_lit.doctor.report import Check, Prompt
from sppo_lit.models.loading import eos_token_ids
from sppo_lit.problems.procedural import procedural
from sppo_lit.training.datamodule import MathDataModule
from sppo_lit.training.diagnostics import no_reward
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.supervised import SupervisedModule
from sppo_lit.types import Completion, Encoded, Problem, Sampling, Sequences, Verdict
from sppo_lit.utils.console import visible
from sppo_lit.utils.out_of_memory import is_out_of_memory

Trainee = SPPOModule | SupervisedModule

GOLDS = 300
"""Number of gold answers verified."""

GAP = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest mean difference of log-probabilities (or of V) that rounding explains, by precision of the passes."""


STEP = 10
"""The step of the engine's check moves log-probabilities by this many times what rounding explains."""


@dataclass
class Sample:
    """n problems answered by the untrained policy, and the tensors of an update over them.

    Attributes:
        module: the recipe's module.
        encoded: problems with their prompt ids.
        completions: one response to each.
        verdicts: of each response.
    """

    module: Trainee
    encoded: list[Encoded]
    completions: list[Completion]
    verdicts: list[Verdict]

    def __post_init__(self) -> None:
        device = self.module.device
        prompts = pad_rows([ids for _, ids in self.encoded], device)
        responses = pad_rows([c.response_ids for c in self.completions], device)
        self.sequences = Sequences(*prompts, *responses)
        self.sampled = pad_rows([c.logprobs for c in self.completions], device, torch.float32)[0]
        self.pieces = self.module.budget.cut(torch.arange(len(self.encoded)), self.sequences.lengths())

    def logprobs(self, rows: Tensor) -> Tensor:
        """Log-probabilities of some rows' responses, [N, T]."""
        with self.module.trainer.precision_plugin.train_step_context():
            tokens = self.sequences.select(rows).tokens
            terms = self.module.policy(*tokens, self.module.sampling.temperature or 1.0)
        return terms.logprobs

    def all_logprobs(self, pieces: Sequence[Tensor]) -> Tensor:
        """The same for all rows, in micro-batches, [n, T], without gradient."""
        result = torch.zeros_like(self.sampled)
        for rows in pieces:
            logprobs = self.logprobs(rows).detach()
            result[rows, : logprobs.shape[1]] = logprobs.to(result.dtype)
        return result

    def gap(self, a: Tensor, b: Tensor) -> float:
        """Mean absolute difference over response tokens."""
        lengths = self.sequences.response_lengths
        mask = response_mask(lengths, self.sequences.response_ids.shape[1])
        return float(masked_sum((a - b).abs(), mask) / lengths.sum())

    @property
    def tolerance(self) -> float:
        """Largest difference that rounding explains."""
        precision = str(self.module.trainer.precision)
        return GAP[torch.bfloat16 if "bf16" in precision else torch.float32]

    @property
    def engine_tolerance(self) -> float:
        """The same between sampler and update; an engine that is not exact may have a precision of its own."""
        sampler = self.module.sampler
        assert sampler is not None
        return self.tolerance if sampler.engine(self.module.iteration).exact else max(GAP.values())


def first_prompt(name: str, module: Trainee, encoded: Sequence[Encoded]) -> Prompt:
    """The text that the model reads before its answer to the first problem of a set."""
    _, ids = encoded[0]
    return Prompt(name, str(module.tokenizer.decode(ids, skip_special_tokens=False)), len(ids))


def tokenizer_check(module: Trainee, encoded: Sequence[Encoded]) -> Check:
    """End-of-sequence and pad tokens, a single BOS, and a chat template that keeps the text and ends its turns."""
    tokenizer = module.tokenizer
    ends = eos_token_ids(module.policy.model, tokenizer)
    problem, ids = encoded[0]
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    start = tokenizer.bos_token_id
    defects = []
    if start is not None and ids[:2] == [start, start]:
        defects.append((f"prompts begin with {tokenizer.bos_token} twice", "remove one from the chat template"))
    if "".join(problem.prompt.split()) not in "".join(text.split()):
        defects.append(("a prompt decodes to another text", "use the tokenizer and the chat template of this model"))
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        defects.append(("a prompt has unknown tokens", "use the tokenizer of this model"))
    if (turn := _end_of_turn(tokenizer)) and not set(turn) & set(ends):
        written = visible(str(tokenizer.decode(turn)))
        advice = "add its id to eos_token_id in the model's generation_config.json"
        defects.append((f"the chat template ends an answer with {written}, which ends no response", advice))
    names = ", ".join(visible(str(tokenizer.decode([i]))) for i in ends)
    tokens = f"ends with {names}; pads with {visible(tokenizer.pad_token)}; {len(ids)} tokens in the first prompt"
    if not defects:
        return Check("tokenizer", True, tokens)
    detail, advice = ("; ".join(dict.fromkeys(texts)) for texts in zip(*defects, strict=True))
    return Check("tokenizer", False, detail, advice)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that the chat template writes after an assistant's answer; empty if unknown."""
    if not tokenizer.chat_template:
        return []
    answer = "The answer is 12345."
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may raise anything
        return []
    after = text.rpartition(answer)[2].strip()
    return list(tokenizer(after, add_special_tokens=False)["input_ids"]) if after else []


def ratio_check(sample: Sample) -> Check:
    """π / π_old of the first minibatch: the same micro-batches without and with gradient."""
    with torch.no_grad():
        old = sample.all_logprobs(sample.pieces)
    with torch.enable_grad():
        new = sample.all_logprobs(sample.pieces)
    deviation = float(((new - old).exp() - 1).abs().max())
    return Check(
        "first ratio",
        deviation <= 1e-6,
        f"largest |ratio − 1| is {deviation:.1e}",
        "something in the policy is random or depends on gradients (dropout?): the loss's ratio is noise",
    )


@torch.no_grad()
def padding_check(sample: Sample) -> Check:
    """Log-probabilities of each response alone against those in a ragged batch."""
    together = sample.all_logprobs(sample.pieces)
    alone = sample.all_logprobs([torch.tensor([row]) for row in range(len(sample.encoded))])
    gap = sample.gap(together, alone)
    return Check(
        "padding, policy",
        gap <= sample.tolerance,
        f"log-probabilities alone and in a batch differ by {gap:.1e} on average",
        "the model reads padding: choose one with causal attention in model.policy.path",
    )


@torch.no_grad()
def critic_check(sample: Sample) -> Check:
    """V of each prompt alone against V in a ragged batch, with a random head if the critic's is still zero."""
    critic = sample.module.critic
    if critic is None:
        return Check("padding, critic", True, "no critic")
    with sample.module.trainer.precision_plugin.train_step_context(), _nonzero_head(critic.model):
        gaps = []
        for rows in sample.pieces:
            together = critic(*critic.inputs(sample.sequences.select(rows))).sigmoid()
            for row, values in zip(rows.tolist(), together, strict=True):
                one = sample.sequences.select(torch.tensor([row]))
                alone = critic(*critic.inputs(one))[0].sigmoid()
                gaps.append(float((values[: len(alone)] if values.ndim else values).sub(alone).abs().mean()))
    gap = sum(gaps) / len(gaps)
    return Check(
        "padding, critic",
        gap <= sample.tolerance,
        f"V alone and in a batch differ by {gap:.1e} on average",
        "the critic reads padding: choose one with causal attention in model.critic.path",
    )


@contextmanager
def _nonzero_head(model: PreTrainedModel) -> Iterator[None]:
    """Give an untrained critic, whose zero head always predicts 0.5, a random head inside the block."""
    weight = model.get_parameter("score.weight")
    original = weight.detach().clone()
    if not original.any():
        generator = torch.Generator().manual_seed(0)
        weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)
    try:
        yield
    finally:
        weight.copy_(original)


@torch.no_grad()
def sampler_check(sample: Sample) -> Check:
    """Log-probabilities computed while sampling against those of the update."""
    gap = sample.gap(sample.sampled, sample.all_logprobs(sample.pieces))
    return Check(
        "sampler",
        gap <= sample.engine_tolerance,
        f"log-probabilities of sampler and update differ by {gap:.1e} on average (rollout/logprob_gap)",
        "sampling and training are not the same policy: try --precision 32-true, and report this model",
    )


@torch.no_grad()
def engine_check(sample: Sample) -> Check:
    """The engine's greedy tokens against the policy's own, and its log-probabilities before and after a step.

    After one gradient step and a sync, sampled log-probabilities must be those of the new weights: weights, or
    adapters, that do not reach the sampler go unnoticed otherwise. The weights are restored.
    """
    module, advice = sample.module, "weights do not reach the sampler, or it computes something else: report this model"
    sampler = module.sampler
    assert sampler is not None
    wrong, tokens = _greedy_differences(sample)
    trained = [p for p in module.policy.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    old = sample.all_logprobs(sample.pieces)
    try:
        moved = _step(sample, trained, before, old)
        sampler.weights_changed()
        again = _answered(sample, module.sampling, "doctor")
        gap = again.gap(again.sampled, again.all_logprobs(again.pieces))
    finally:
        for parameter, value in zip(trained, before, strict=True):
            parameter.copy_(value)
        sampler.weights_changed()
    sampler.engine(module.iteration)
    return Check(
        "engine",
        not wrong and gap <= sample.engine_tolerance < moved,
        f"{wrong} of {tokens} greedy tokens are not the policy's; after a step that moves log-probabilities by "
        f"{moved:.1e} on average, sampler and update differ by {gap:.1e}",
        advice
        if wrong or gap > sample.engine_tolerance
        else "a gradient step does not move the policy: nothing is trained",
    )


def _answered(sample: Sample, sampling: Sampling, stage: str) -> Sample:
    """New responses to the same problems."""
    module = sample.module
    assert module.sampler is not None
    first = [0] * len(sample.encoded)
    completions = module.sampler.draw(sample.encoded, sampling, stage, first, module.iteration)
    return Sample(module, sample.encoded, completions, sample.verdicts)


def _greedy_differences(sample: Sample) -> tuple[int, int]:
    """Greedy tokens that are less likely than another by more than rounding explains, and the number of tokens."""
    greedy = _answered(sample, replace(sample.module.sampling, temperature=0.0), "doctor/greedy")
    wrong = tokens = 0
    for (_, prompt), completion in zip(greedy.encoded, greedy.completions, strict=True):
        ids = torch.tensor([prompt + completion.response_ids], device=sample.module.device)
        with sample.module.trainer.precision_plugin.train_step_context():
            logits = sample.module.policy.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        best, chosen = (
            x.float() for x in (logits.max(dim=-1).values, logits.gather(1, ids[0, len(prompt) :, None])[:, 0])
        )
        spacing = torch.finfo(logits.dtype).eps * best.abs()  # between neighbouring numbers: 1/8 at 16 in bfloat16
        wrong += int((best - chosen > 2 * spacing.clamp(min=sample.engine_tolerance)).sum())
        tokens += len(completion.response_ids)
    return wrong, tokens


def _step(sample: Sample, trained: Sequence[Tensor], before: Sequence[Tensor], old: Tensor) -> float:
    """Move along the gradient of the responses' log-probability, far enough to be seen; returns the mean change."""
    with torch.enable_grad():
        for rows in sample.pieces:
            sample.logprobs(rows).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    for p in trained:
        p.grad = None
    moved, size = 0.0, 1e-3
    while norm > 0 and moved < STEP * sample.engine_tolerance and size < 1e3:
        for parameter, value, gradient in zip(trained, before, gradients, strict=True):
            parameter.copy_(value + gradient * (size / norm))
        moved, size = sample.gap(old, sample.all_logprobs(sample.pieces)), 4 * size
    return moved


def gold_check(module: Trainee, problems: Sequence[Problem]) -> Check:
    """The verifier must give every gold answer 1 and an empty response 0."""
    golds = [p.gold for p in problems]
    verdicts = module.verifier.score([f"\\boxed{{{p.answer}}}" for p in problems], golds)
    [empty] = module.verifier.score([""], golds[:1])
    failed = [(p, v) for p, v in zip(problems, verdicts, strict=True) if v.reward != 1]
    detail = f"{len(golds) - len(failed)} of {len(golds)} gold answers are judged correct"
    if failed:
        problem, verdict = failed[0]
        detail += f"; not {problem.key}: {visible(problem.answer)[:60]!r} ({verdict.reason})"
    if empty.reward:
        detail += "; an empty response too"
    return Check(
        "gold answers",
        len(failed) <= 0.01 * len(golds) and not empty.reward,
        detail,
        "'sppo audit' lists all of them; give answers as numbers or LaTeX, without \\boxed",
    )


def truncation_check(sample: Sample) -> Check:
    """Share of truncated responses."""
    cut = sum(not c.finished for c in sample.completions)
    n, mean = len(sample.completions), float(sample.sequences.response_lengths.float().mean())
    return Check(
        "truncation",
        cut <= 0.25 * n,
        f"{cut} of {n} responses ({cut / n:.0%}) reach {sample.module.sampling.max_new_tokens} tokens (mean length "
        f"{mean:.0f})",
        "more than a quarter never get to their answer: raise model.sampling.max_new_tokens, or warm the policy up",
    )


def accuracy_check(sample: Sample) -> Check:
    """Share of problems solved before training."""
    reasons, n = Counter(verdict.reason for verdict in sample.verdicts), len(sample.verdicts)
    right = reasons["correct"]
    return Check(
        "accuracy",
        0 < right < n,
        f"{right} of {n} problems solved at temperature {sample.module.sampling.temperature:g}",
        "all are solved already: use harder problems"
        if right
        else no_reward({reason: count / n for reason, count in reasons.items()}),
    )


CHECKS: tuple[Callable[[Sample], Check], ...] = (
    ratio_check,
    padding_check,
    critic_check,
    sampler_check,
    engine_check,
    truncation_check,
    accuracy_check,
)
"""Checks of sampled responses, in this order."""


class Examination(pl.Callback):
    """Runs the checks in place of training, with everything set up as for a run.

    Args:
        problems: number of problems sampled.
    """

    def __init__(self, problems: int) -> None:
        self.problems = problems
        self.checks: list[Check] = []
        self.prompts: list[Prompt] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run all checks and stop; nothing is trained or written."""
        module, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, (SPPOModule, SupervisedModule)) and isinstance(data, MathDataModule)
        assert data.stream is not None and module.sampler is not None
        trainer.should_stop = True
        encoded = data.stream.take(0, self.problems)
        self.prompts = [first_prompt("train", module, encoded)]
        self.prompts += [first_prompt(f"val: {name}", module, problems) for name, problems in data.val_sets.items()]
        self.checks.append(tokenizer_check(module, encoded))
        self.checks.append(gold_check(module, raw_problems(data, GOLDS)))
        try:
            first = [0] * len(encoded)
            completions = module.sampler.draw(encoded, module.sampling, "doctor", first, module.iteration)
            _, verdicts = module.sampler.judge(encoded, completions)
            sample = Sample(module, encoded, completions, verdicts)
            self.checks += [check(sample) for check in CHECKS]
        except FloatingPointError as error:
            self.checks.append(Check("sampling", False, str(error), "the weights are broken or overflow: reload them"))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            advice = "lower model.rollout.max_concurrent, or set model.memory.gradient_checkpointing"
            self.checks.append(Check("sampling", False, "out of GPU memory with one process", advice))


def raw_problems(data: MathDataModule, count: int) -> list[Problem]:
    """The first training problems of their source, before any is dropped for its gold answer."""
    if source := procedural(data.train.path):
        return data.generated(source, data.train, count, "train")[0]
    limit = min(count, data.train.limit or count)
    return list(data.open_source(replace(data.train, limit=limit)).problems())
