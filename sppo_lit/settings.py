"""Groups of settings in recipes. A recipe's key is the field's name; every field documents its unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sppo_lit.errors import InputError, refuse
from sppo_lit.types import LARGEST_REWARD, Aggregation, KLEstimator, Sampling
from sppo_lit.utils.objects import check_object, names_object


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        path: Hub id, local folder, or a `.gguf` file (extra `gguf`; the weights are dequantised).
        init: "pretrained" loads the weights; "random" only the architecture and the tokenizer.
        config: overrides of the model's configuration, e.g. ``{num_hidden_layers: 1}``; only with "random".
        revision: Hub revision.
        adapter: folder or Hub id of an adapter of PEFT, e.g. a run's ``hf/adapter``, merged into the weights (extra
            `lora`); only with "pretrained".
    """

    path: str
    init: Literal["pretrained", "random"] = "pretrained"
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    revision: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.config and self.init == "pretrained":
            raise InputError(f"{self.path}: config changes {sorted(self.config)} need init: random")
        if self.adapter is not None and self.init == "random":
            raise InputError(f"{self.path}: the adapter {self.adapter} needs init: pretrained")


@dataclass(frozen=True)
class BatchSettings:
    """How an iteration's problems become optimizer steps: problems × samples = sequences, cut into minibatches.

    Attributes:
        samples_per_prompt: N, responses to each problem; None uses the algorithm's default. 1 in supervised training.
        minibatch_size: sequences of one optimizer step, over all ranks; must divide the iteration's sequences.
    """

    samples_per_prompt: int | None = None
    minibatch_size: int = 128

    def __post_init__(self) -> None:
        refuse("model.batch", minibatch_size=(self.minibatch_size, self.minibatch_size >= 1, "at least 1"))


@dataclass(frozen=True)
class SelectSettings:
    """Which of an iteration's problems are answered, by their predicted success; off by default.

    Attributes:
        by: "critic", V of a critic of prompts; "tracker", the past outcomes of each problem, unseen ones at the mean of
            all others; "none", no choice.
        pool: problems drawn for each one that is answered, at least 2.
        target: predicted success, from 0 to 1, that the answered ones are nearest to.
    """

    by: Literal["none", "critic", "tracker"] = "none"
    pool: int = 4
    target: float = 0.5

    def __post_init__(self) -> None:
        refuse(
            "data.select",
            pool=(self.pool, self.pool >= 2, "at least 2 (by: none for no choice)"),
            target=(self.target, 0 <= self.target <= 1, "from 0 to 1"),
        )

    def drawn(self, problems: int) -> int:
        """Problems drawn from the stream in an iteration that answers so many."""
        return problems if self.by == "none" else problems * self.pool


@dataclass(frozen=True)
class PPOSettings:
    """Settings of the PPO update: epochs, clip ranges and loss terms.

    Attributes:
        epochs: passes over the iteration's sequences.
        clip_low: ε below 1 of the ratio's clip range; None uses the algorithm's default.
        clip_high: ε above 1 (larger than `clip_low`: DAPO's clip-higher); None uses the algorithm's default.
        dual_clip: c of the dual clip on negative advantages; None for none.
        aggregation: how token losses are averaged; None uses the algorithm's default.
        entropy_coef: weight of the entropy bonus, per token, in nats.
        value_clip: range around the old value beyond which PPO's value loss is clipped.
        old_logprobs: "recompute" computes them in a separate pass over the same micro-batches as the update, so that
            the first minibatch's ratio is exactly 1; "sampler" reuses those computed while sampling, which saves the
            pass and is exact up to float error in float32.
        critic_warmup: number of initial iterations in which only the critic is trained.
    """

    epochs: int = 1
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = 3.0
    aggregation: Aggregation | None = None
    entropy_coef: float = 0.0
    value_clip: float = 0.5
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    critic_warmup: int = 0

    def __post_init__(self) -> None:
        low, high, dual = self.clip_low, self.clip_high, self.dual_clip
        refuse(
            "model.ppo",
            epochs=(self.epochs, self.epochs >= 1, "at least 1"),
            clip_low=(low, low is None or 0 <= low <= 1, "from 0 to 1"),
            clip_high=(high, high is None or high >= 0, "at least 0"),
            dual_clip=(dual, dual is None or dual > 1, "above 1, or null for none"),
            entropy_coef=(self.entropy_coef, math.isfinite(self.entropy_coef), "a finite number"),
            value_clip=(self.value_clip, self.value_clip > 0, "above 0 (.inf for no clipping)"),
            critic_warmup=(self.critic_warmup, self.critic_warmup >= 0, "at least 0"),
        )


@dataclass(frozen=True)
class CorrectionSettings:
    """What the policy loss does where the sampler's log-probabilities are not the trainer's.

    Both parts compare π_old, recomputed by the trainer, with the probabilities under which a response was sampled.

    Attributes:
        enabled: None: with an engine whose log-probabilities are not exact, such as vllm.
        token_cap: the loss of each token is weighted by min(π_old / π_sampler, token_cap) (truncated importance
            sampling); None for no weights.
        sequence_cap: the policy does not learn from a response whose whole ratio, the product over its tokens, exceeds
            this; None for no limit.
    """

    enabled: bool | None = None
    token_cap: float | None = 2.0
    sequence_cap: float | None = 3.0

    def __post_init__(self) -> None:
        token, sequence, least = self.token_cap, self.sequence_cap, "at least 1, or null to switch it off"
        refuse(
            "model.correction",
            token_cap=(token, token is None or token >= 1, least),
            sequence_cap=(sequence, sequence is None or sequence >= 1, least),
        )
        if self.enabled and token is None and sequence is None:
            raise InputError("model.correction: enabled with neither token_cap nor sequence_cap; set one of them")


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages, beyond what the algorithm defines.

    Attributes:
        gamma: discount per token of token-level estimators.
        lam: λ of its generalised advantage estimation (GAE); None uses the algorithm's default.
        critic_lam: λ of the returns that a token-level critic learns; None uses the algorithm's default, and where that
            has none, the λ of the advantages.
        value_weight: w of Sequence-Level PPO with N > 1 responses to a prompt, from 0 to 1: the baseline is
            w · V + (1 − w) · mean of the other responses (1 is the paper's, 0 that of RLOO).
        whiten: shift and scale the advantages to mean 0 and variance 1; None uses the algorithm's default.
        drop_equal_groups: do not train the policy on problems whose N responses all got the same reward.
    """

    gamma: float = 1.0
    lam: float | None = None
    critic_lam: float | None = None
    value_weight: float = 1.0
    whiten: bool | None = None
    drop_equal_groups: bool = False

    def __post_init__(self) -> None:
        share = "from 0 to 1"
        refuse(
            "model.advantage",
            value_weight=(self.value_weight, 0 <= self.value_weight <= 1, share),
            gamma=(self.gamma, 0 <= self.gamma <= 1, share),
            lam=(self.lam, self.lam is None or 0 <= self.lam <= 1, share),
            critic_lam=(self.critic_lam, self.critic_lam is None or 0 <= self.critic_lam <= 1, share),
        )


@dataclass(frozen=True)
class MemorySettings:
    """Limits on the accelerator memory of a training step.

    Attributes:
        micro_batch_tokens: most tokens, padding included, of one forward pass with gradient.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        cpu_offload: under `--strategy fsdp`, keep weights, gradients and optimizer states in CPU memory.
        offload_while_sampling: move to CPU memory while responses are sampled, and back for the update: "optimizer",
            its states; "all", also the weights that sampling does not read (all of them where it decodes from a copy);
            "none".
    """

    micro_batch_tokens: int = 16384
    gradient_checkpointing: bool = False
    cpu_offload: bool = False
    offload_while_sampling: Literal["none", "optimizer", "all"] = "none"

    def __post_init__(self) -> None:
        refuse("model.memory", micro_batch_tokens=(self.micro_batch_tokens, self.micro_batch_tokens >= 1, "at least 1"))


@dataclass(frozen=True)
class VLLMSettings:
    """The vLLM engine; used with `model.rollout.engine: vllm` only.

    Attributes:
        dtype: precision of its weights and its cache; "auto" is float32 on a CPU and bfloat16 elsewhere.
        memory_share: share of each GPU's memory for its weights and its cache together.
        cache_gib: GiB of the cache of keys and values; None takes what `memory_share` leaves, on a CPU 1 GiB.
        max_model_len: longest prompt and response together, in tokens; None takes the model's own limit.
        tensor_parallel_size: processes of the run that share one copy of the weights; must divide their number.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory_share: float = 0.3
    cache_gib: float | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        length, cache, shards = self.max_model_len, self.cache_gib, self.tensor_parallel_size
        refuse(
            "model.rollout.vllm",
            memory_share=(self.memory_share, 0 < self.memory_share <= 1, "above 0 and at most 1"),
            cache_gib=(cache, cache is None or cache > 0, "above 0, or null"),
            max_model_len=(length, length is None or length >= 2, "at least 2, or null for the model's own limit"),
            tensor_parallel_size=(shards, shards >= 1, "at least 1"),
        )


@dataclass(frozen=True)
class RolloutSettings:
    """The rollout engine.

    Attributes:
        engine: "torch", "vllm", or a custom factory as ``package.module.name`` or ``path/to/file.py:name``.
        max_concurrent: most sequences decoded at once.
        vllm: settings of the vLLM engine.
    """

    engine: str = "torch"
    max_concurrent: int = 256
    vllm: VLLMSettings = field(default_factory=VLLMSettings)

    def __post_init__(self) -> None:
        refuse("model.rollout", max_concurrent=(self.max_concurrent, self.max_concurrent >= 1, "at least 1"))
        if names_object(self.engine):
            check_object(self.engine, "model.rollout.engine")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a learning-rate schedule over iterations; policy and critic have one each.

    Attributes:
        lr: peak learning rate, from 0 to 1.
        weight_decay: decoupled, per unit of lr.
        betas: decay rates of the first and second moment.
        eps: added to the square root of the second moment.
        clip_norm: largest global gradient norm of one optimizer step; ``.inf`` for no clipping.
        schedule: "constant", "linear" or "cosine" decay after the warm-up, to the zero of the iteration after the last.
        warmup_iterations: linear from 0 over this many iterations.
        max_skipped_steps: the run ends after this many consecutive steps with a loss or gradient that is not finite.
    """

    lr: float = 1e-6
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_iterations: int = 0
    max_skipped_steps: int = 5

    def __post_init__(self) -> None:
        refuse(
            "model.policy_optimizer or critic_optimizer",
            lr=(self.lr, 0 <= self.lr <= 1, "from 0 to 1 (above, AdamW only destroys the weights)"),
            weight_decay=(self.weight_decay, self.weight_decay >= 0, "at least 0"),
            betas=(list(self.betas), all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            eps=(self.eps, self.eps >= 0, "at least 0"),
            clip_norm=(self.clip_norm, self.clip_norm > 0, "above 0 (.inf for no clipping)"),
            warmup_iterations=(self.warmup_iterations, self.warmup_iterations >= 0, "at least 0"),
            max_skipped_steps=(self.max_skipped_steps, self.max_skipped_steps >= 1, "at least 1"),
        )

    def lr_at(self, iteration: int, iterations: int) -> float:
        """Learning rate of 0-based `iteration` in a run of `iterations`; a pure function, so a resumed run agrees."""
        if iteration < self.warmup_iterations:
            return self.lr * (iteration + 1) / self.warmup_iterations
        left = max(iterations - self.warmup_iterations, 1)
        progress = min((iteration - self.warmup_iterations) / left, 1.0)
        decay = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
        return self.lr * decay[self.schedule]


@dataclass(frozen=True)
class EvalSettings:
    """How held-out problems are answered during validation.

    Attributes:
        greedy: sample one greedy response to each problem.
        samples: k, responses sampled for each problem; 0 for none.
        temperature: sampling temperature of those (paper: 0.6).
        max_new_tokens: longest response in tokens; None uses the training limit.
        values: also have the critic predict each response's success: V(prompt), and V before every token of the
            response where the critic is token-level.
        at_start: problems of each set that are answered before training, None for all of them. The first evaluation of
            all is then the one that later ones are compared with.
        chunk: responses that a process samples between two writes to disk in `validate`: an interruption loses at most
            this many.
    """

    greedy: bool = True
    samples: int = 0
    temperature: float = 0.6
    max_new_tokens: int | None = None
    values: bool = False
    at_start: int | None = None
    chunk: int = 512

    @property
    def responses(self) -> int:
        """Number of responses to each problem."""
        return self.greedy + self.samples

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        refuse(
            "model.evaluation",
            samples=(self.samples, self.samples >= 0, "at least 0"),
            temperature=(self.temperature, 0 <= self.temperature < math.inf, "at least 0"),
            chunk=(self.chunk, self.chunk >= 1, "at least 1"),
            at_start=(
                self.at_start,
                self.at_start is None or self.at_start >= 1,
                "at least 1, or null for all problems (trainer.num_sanity_val_steps 0 for no evaluation)",
            ),
            max_new_tokens=(limit, limit is None or limit >= 1, "at least 1, or null for the training limit"),
        )
        if self.samples and self.temperature <= 0:
            raise InputError(
                f"model.evaluation: {self.samples} samples at temperature {self.temperature} would all be equal; "
                "set a temperature above 0, or samples: 0 with greedy: true"
            )
        if not self.samples and not self.greedy:
            raise InputError("model.evaluation: neither greedy nor samples: nothing to evaluate")


@dataclass(frozen=True)
class VerifierSettings:
    """The worker processes that verify answers.

    Attributes:
        kind: "math", or a custom verifier: ``package.module:name`` or ``path/to/file.py:name`` of a function or
            class that takes these settings and the names of the custom rewards (see `rewards.verifiers`).
        workers: number of processes; None for one per core, shared among the ranks of this machine.
        deadline: seconds for one answer; after that its worker is killed and replaced, and the answer counts as wrong.
        memory_mb: MiB of address space for each worker.
        audit: file to which a sample of the accepted answers that are not the gold answer to the letter is appended,
            with the rules that accepted them; `sppo audit --accepted FILE` shows it. None for no file.
    """

    kind: str = "math"
    workers: int | None = None
    deadline: float = 5.0
    memory_mb: int = 2048
    audit: str | None = None


@dataclass(frozen=True)
class RewardSettings:
    """The policy's reward for a response; the critic is always trained on the verifier's 0 or 1.

    R = correctness · verdict + Σ weight · custom(response, gold) + overlong penalty.

    Attributes:
        correctness: weight of the verdict.
        custom: weight by function ``f(response, gold) -> float``, named as ``package.module.function`` or
            ``path/to/file.py:function``; they run in the verifier's processes, within its deadline.
        overlong_cache: number of tokens before the length limit over which the penalty grows linearly to its full size
            (DAPO, arXiv 2503.14476, equation 13); None for no penalty.
        overlong_factor: size of the full penalty.
    """

    correctness: float = 1.0
    custom: Mapping[str, float] = field(default_factory=dict)
    overlong_cache: int | None = None
    overlong_factor: float = 1.0

    def __post_init__(self) -> None:
        weights = {"correctness": self.correctness, "overlong_factor": self.overlong_factor, **self.custom}
        for name, weight in weights.items():
            if not -LARGEST_REWARD <= weight <= LARGEST_REWARD:  # not so of nan
                raise InputError(
                    f"model.reward: the weight of {name} is {weight}; it must be a number from -{LARGEST_REWARD:g} to "
                    f"{LARGEST_REWARD:g}"
                )

    def check(self, max_length: int) -> None:
        """Raise `InputError` for a reward that does not exist or a cache longer than the longest response."""
        for spec in self.custom:
            check_object(spec, "model.reward.custom")
        if self.overlong_cache is not None and not 0 <= self.overlong_cache <= max_length:
            raise InputError(
                f"model.reward.overlong_cache is {self.overlong_cache}; it must be between 0 and "
                f"model.sampling.max_new_tokens ({max_length})"
            )


@dataclass(frozen=True)
class KLSettings:
    """Penalty on the KL divergence from a reference policy; off by default, as in the paper.

    Attributes:
        coef: β, weight of the penalty; 0 needs no reference model.
        where: "loss" adds β · KL to the policy's loss; "reward" subtracts it from the reward of each token.
        estimator: estimator of KL(π ‖ π_ref) at each token: "k1", "k2" or "k3" (`losses.kl_penalty`).
        reference: the frozen policy; None uses the policy's source, that is, its initial weights.
    """

    coef: float = 0.0
    where: Literal["loss", "reward"] = "loss"
    estimator: KLEstimator = "k3"
    reference: ModelSource | None = None

    def __post_init__(self) -> None:
        refuse("model.kl", coef=(self.coef, self.coef >= 0, "at least 0"))
        if self.coef and self.where == "loss" and self.estimator == "k1":
            raise InputError(
                "model.kl: the gradient of k1 in the loss is 0 on average; take k2 or k3 there, or where: reward"
            )


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, trained in place of the policy's weights.

    Attributes:
        rank: rank of every adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: "all-linear" (every linear layer except the output layer), or a list of layer-name suffixes.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | list[str] = field(default="all-linear", hash=False)

    def __post_init__(self) -> None:
        refuse(
            "model.lora",
            rank=(self.rank, self.rank >= 1, "at least 1"),
            alpha=(self.alpha, self.alpha > 0, "above 0"),
            targets=(self.targets, bool(self.targets), "all-linear or a list of layer-name suffixes"),
        )


def check_sampling(sampling: Sampling) -> None:
    """Refuse what cannot be sampled, before anything is loaded.

    Raises:
        InputError: a setting is out of its range.
    """
    refuse(
        "model.sampling",
        temperature=(sampling.temperature, 0 <= sampling.temperature < math.inf, "at least 0"),
        max_new_tokens=(sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        top_p=(sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1 (1 switches it off)"),
        top_k=(sampling.top_k, sampling.top_k >= 0, "at least 0 (0 switches it off)"),
    )
