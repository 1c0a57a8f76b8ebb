"""The sampler against `model.generate` and against full forward passes."""

from __future__ import annotations

import random

import pytest
import torch
from rollout_models import PAD, VOCABULARY, build, ragged_prompts
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from sppo_lit.errors import InputError
from sppo_lit.rollout import TorchEngine, sequence_key, torch_engine
from sppo_lit.rollout.checks import cache_argument
from sppo_lit.rollout.slot_cache import SlotCache
from sppo_lit.rollout.torch_engine import cache_bytes
from sppo_lit.types import Completion, Sampling

MODELS = ("llama", "qwen2", "gpt2")
GREEDY = Sampling(temperature=0, max_new_tokens=24)


def generate_greedily(
    model: PreTrainedModel, prompts: list[list[int]], limit: int, eos: list[int] | None
) -> list[list[int]]:
    """What `model.generate` answers, left-padded; cut behind the first EOS."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.eval()
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=limit, eos_token_id=eos, pad_token_id=PAD
    )
    model.train()
    answers = out[:, longest:].tolist()
    for answer in answers:
        ends = [t for t, token in enumerate(answer) if token in (eos or [])]
        del answer[ends[0] + 1 if ends else limit :]
    return answers


def full_logprobs(model: PreTrainedModel, prompt: list[int], done: Completion, temperature: float) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + done.response_ids])).logits[0, len(prompt) - 1 : -1]
    model.train()
    scores = (logits.double() / temperature).log_softmax(-1)
    return scores.gather(1, torch.tensor(done.response_ids)[:, None])[:, 0]


def keys_for(prompts: list[list[int]]) -> list[int]:
    return [sequence_key(7, 0, f"problem/{i}", 0) for i in range(len(prompts))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slots", [5, 64])
@pytest.mark.parametrize("eos", [[], [3], [3, 11, 17]])
def test_greedy_equals_generate(name: str, slots: int, eos: list[int]) -> None:
    model, prompts = build(name), ragged_prompts(17)
    expected = generate_greedily(model, prompts, 24, eos or None)
    done = TorchEngine(model, eos, PAD, max_concurrent=slots).generate(prompts, GREEDY)
    assert [d.response_ids for d in done] == expected
    assert [d.finished for d in done] == [answer[-1] in eos for answer in expected]
    if eos:
        assert len({len(answer) for answer in expected}) > 2, "the comparison should see rows that end early"
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_samples_do_not_depend_on_the_batch(name: str) -> None:
    model, prompts = build(name), ragged_prompts(40, seed=1)
    keys, sampling = keys_for(prompts), Sampling(temperature=0.8, max_new_tokens=30)
    wide = TorchEngine(model, [3], PAD, max_concurrent=64).generate(prompts, sampling, keys=keys)
    narrow = TorchEngine(model, [3], PAD, max_concurrent=3).generate(prompts, sampling, keys=keys)
    order = random.Random(0).sample(range(40), 40)
    shuffled = TorchEngine(model, [3], PAD, max_concurrent=8).generate(
        [prompts[i] for i in order], sampling, keys=[keys[i] for i in order]
    )
    expected = [d.response_ids for d in wide]
    assert [d.response_ids for d in narrow] == expected
    assert [shuffled[order.index(i)].response_ids for i in range(40)] == expected
    alone = TorchEngine(model, [3], PAD).generate(prompts[5:6], sampling, keys=keys[5:6])
    assert alone[0].response_ids == expected[5]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_are_those_of_a_full_forward_pass(name: str, temperature: float) -> None:
    model, prompts = build(name), ragged_prompts(12, seed=2)
    sampling = Sampling(temperature=temperature, max_new_tokens=20, top_k=5, top_p=0.9)
    done = TorchEngine(model, [3], PAD, max_concurrent=5).generate(prompts, sampling, keys=keys_for(prompts))
    for prompt, one in zip(prompts, done, strict=True):
        expected = full_logprobs(model, prompt, one, temperature or 1.0)
        assert torch.tensor(one.logprobs).sub(expected).abs().max() < 1e-5


def test_samples_of_one_prompt_share_its_prefill_and_differ() -> None:
    model = build("qwen2")
    prompts = [prompt for prompt in ragged_prompts(4, seed=3, longest=30) for _ in range(6)]
    keys = [sequence_key(0, i // 6, i % 6) for i in range(24)]
    read: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    done = TorchEngine(model, [3], PAD).generate(prompts, Sampling(max_new_tokens=16), keys=keys)
    hook.remove()
    assert read[0] == 4 * (max(map(len, prompts)) - 1)
    assert len({tuple(d.response_ids) for d in done[:6]}) > 1
    for prompt, one in zip(prompts, done, strict=True):
        assert torch.tensor(one.logprobs).sub(full_logprobs(model, prompt, one, 1.0)).abs().max() < 1e-5


def test_limits_of_single_rows_and_prefixes() -> None:
    """A lower limit cuts a response and changes nothing of what is left."""
    model, prompts = build("llama"), ragged_prompts(20, seed=4)
    limits = [random.Random(i).randint(1, 90) for i in range(20)]
    keys, engine = keys_for(prompts), TorchEngine(model, [3], PAD, max_concurrent=6)
    long = engine.generate(prompts, Sampling(max_new_tokens=90), keys=keys)
    cut = engine.generate(prompts, Sampling(max_new_tokens=5), keys=keys, max_new_tokens=limits)
    for limit, whole, part in zip(limits, long, cut, strict=True):
        assert part.response_ids == whole.response_ids[:limit]
        assert len(part.logprobs) == len(part.response_ids)
        assert part.finished == (whole.finished and len(whole.response_ids) <= limit)


def test_progress_ends_with_everything_finished() -> None:
    model, prompts, seen = build("llama"), ragged_prompts(9), []
    done = TorchEngine(model, [3], PAD, max_concurrent=4).generate(
        prompts, GREEDY, on_progress=lambda *report: seen.append(report)
    )
    assert seen[-1] == (9, 9, sum(len(d.response_ids) for d in done))


def test_weights_are_copied_into_a_separate_model() -> None:
    policy, copy = build("gpt2", seed=0), build("gpt2", seed=1)
    prompts, engine = ragged_prompts(6), TorchEngine(copy, [3], PAD)
    expected = TorchEngine(policy, [3], PAD).generate(prompts, GREEDY)
    assert engine.generate(prompts, GREEDY) != expected
    engine.sync_weights(policy.named_parameters())
    assert engine.generate(prompts, GREEDY) == expected
    with pytest.raises(InputError, match="left out"):
        engine.sync_weights(list(policy.named_parameters())[:-1])
    with pytest.raises(InputError, match="no such tensor"):
        engine.sync_weights([("transformer.nothing", torch.zeros(1))])


def test_running_out_of_gpu_memory_halves_the_batch() -> None:
    model, prompts = build("llama"), ragged_prompts(16)
    keys, sampling = keys_for(prompts), Sampling(max_new_tokens=20)
    expected = TorchEngine(model, [3], PAD).generate(prompts, sampling, keys=keys)

    def no_room(_, args, kwargs) -> None:
        if kwargs["input_ids"].shape[0] > 5 and kwargs["position_ids"].max() > 22:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = TorchEngine(model, [3], PAD, max_concurrent=16)
    hook = model.register_forward_pre_hook(no_room, with_kwargs=True)
    with pytest.warns(UserWarning, match="max_concurrent=[84]"):
        done = engine.generate(prompts, sampling, keys=keys)
    hook.remove()
    assert [d.response_ids for d in done] == [d.response_ids for d in expected]
    assert engine.max_concurrent < 16


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), Sampling(temperature=0, max_new_tokens=40)])
def test_responses_begun_when_memory_runs_out_are_continued_not_drawn_again(sampling: Sampling) -> None:
    model, prompts, decoded = build("llama"), ragged_prompts(12), 0
    keys = keys_for(prompts)
    expected = TorchEngine(model, [3], PAD).generate(prompts, sampling, keys=keys)

    def watched(_, args, kwargs) -> None:
        nonlocal decoded
        rows, columns = kwargs["input_ids"].shape
        if columns == 1 and decoded > 30 and rows > 6:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        decoded += rows if columns == 1 else 0

    engine = TorchEngine(model, [3], PAD, max_concurrent=12)
    hook = model.register_forward_pre_hook(watched, with_kwargs=True)
    with pytest.warns(UserWarning, match="max_concurrent=6"):
        done = engine.generate(prompts, sampling, keys=keys)
    hook.remove()
    assert [d.response_ids for d in done] == [d.response_ids for d in expected]
    assert [d.finished for d in done] == [d.finished for d in expected]
    for one, other in zip(done, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert decoded == sum(len(d.response_ids) for d in done), "every token was decoded once"


@pytest.mark.parametrize("every", [2, 8, 1000])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_looking_rarely_at_which_responses_have_ended_changes_nothing(architecture: str, every: int) -> None:
    model, prompts = build(architecture), ragged_prompts(20)
    keys, sampling, limits = keys_for(prompts), Sampling(max_new_tokens=30), [30, 1, 2, 17] * 5
    expected, seen = (
        TorchEngine(model, [3, 5], PAD, 6).generate(prompts, sampling, keys=keys, max_new_tokens=limits),
        [],
    )
    done = TorchEngine(model, [3, 5], PAD, 6, check_every=every).generate(
        prompts, sampling, keys=keys, max_new_tokens=limits, on_progress=lambda *report: seen.append(report)
    )
    for one, other in zip(done, expected, strict=True):
        assert (one.response_ids, one.finished) == (other.response_ids, other.finished)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert seen[-1] == (20, 20, sum(len(d.response_ids) for d in done))


def test_as_many_sequences_are_decoded_as_fit_into_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(build("llama"), [3], PAD, max_concurrent=64)
    assert engine.affordable(1000) == 64, "no limit on a CPU"
    cache = SlotCache(16, torch.float32, torch.device("cpu"))
    cache.begin_prefill(1, 0, torch.tensor([0]), torch.tensor([0]), torch.tensor([16]), 16)
    engine.model(
        input_ids=torch.ones((1, 16), dtype=torch.int64),
        attention_mask=cache.attention_mask,
        **{cache_argument(engine.model): cache},
    )
    held = sum(store.numel() * store.element_size() for layer in cache.layers for store in layer.stores())
    assert held == 16 * cache_bytes(engine.model.config, torch.float32)
    monkeypatch.setattr(torch_engine, "free_device_bytes", lambda device: 10 * held)
    assert engine.affordable(16) == 8 and engine.affordable(10_000) == 1
    assert engine.affordable(16, leaving=10 * held) == 16


def test_a_sliding_window_is_accepted_only_while_it_does_not_slide() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=40, bos_token_id=None, eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    model, prompts = MistralForCausalLM(config), ragged_prompts(5, longest=12)
    engine = TorchEngine(model, [], PAD)
    assert [d.response_ids for d in engine.generate(prompts, GREEDY)] == generate_greedily(model, prompts, 24, None)
    with pytest.raises(InputError, match=r"only 40 positions.*model\.rollout\.engine"):
        engine.generate(prompts, Sampling(temperature=0, max_new_tokens=41))


def test_models_without_a_key_value_cache_are_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match=r"model\.rollout\.engine"):
        TorchEngine(mamba, [3], PAD)


def test_not_finite_logits_are_reported() -> None:
    model = build("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        TorchEngine(model, [3], PAD).generate([[1, 2]], Sampling(max_new_tokens=4), keys=[1])


@pytest.mark.parametrize(
    ("prompts", "sampling", "options", "message"),
    [
        ([[1], []], GREEDY, {}, "prompt 1 is empty"),
        ([[1, 29]], GREEDY, {}, "prompt 0 has a token outside"),
        ([[1]], Sampling(max_new_tokens=4), {}, "needs a key"),
        ([[1]], GREEDY, {"max_new_tokens": [0]}, "prompt 0 is 0"),
        ([[1], [2]], GREEDY, {"max_new_tokens": [3]}, "1 max_new_tokens for 2 prompts"),
        ([[1] * 120], GREEDY, {}, "only 128 positions"),
        ([[1]], Sampling(top_p=0), {"keys": [1]}, "top_p 0"),
    ],
)
def test_bad_input(prompts, sampling, options, message) -> None:
    with pytest.raises(InputError, match=message):
        TorchEngine(build("gpt2"), [3], PAD).generate(prompts, sampling, **options)


def test_bad_ids() -> None:
    with pytest.raises(InputError, match="id 29 is outside"):
        TorchEngine(build("gpt2"), [3, 29], PAD)


def test_no_prompts() -> None:
    assert TorchEngine(build("gpt2"), [3], PAD).generate([], GREEDY) == []


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_uninitialised_memory_is_never_read(attention: str) -> None:
    """Fresh memory full of NaN, prompts of one token among longer ones, refills, growth: nothing changes."""
    model = build("qwen2")
    model.set_attn_implementation(attention)
    prompts = [*ragged_prompts(6, longest=40), *([t] for t in range(1, 7)), *ragged_prompts(6, seed=5, longest=40)]
    limits = [70, 3, 50, 9, 33, 21] * 3
    expected = [a[:n] for a, n in zip(generate_greedily(model, prompts, 70, None), limits, strict=True)]
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        done = TorchEngine(model, [], PAD, max_concurrent=4).generate(prompts, GREEDY, max_new_tokens=limits)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [d.response_ids for d in done] == expected
    assert model.config._attn_implementation == attention


def test_bfloat16_autocast() -> None:
    """Keys in float32 after the rotary embedding, values in bfloat16: each cache takes what it is given."""
    model, prompts = build("llama"), ragged_prompts(10, seed=6)
    keys, sampling = keys_for(prompts), Sampling(max_new_tokens=40)
    with torch.autocast("cpu", torch.bfloat16):
        done = TorchEngine(model, [3], PAD, max_concurrent=4).generate(prompts, sampling, keys=keys)
        expected = [full_logprobs(model, p, d, 1.0) for p, d in zip(prompts, done, strict=True)]
    errors = [torch.tensor(d.logprobs).sub(e).abs().mean() for d, e in zip(done, expected, strict=True)]
    assert max(errors) < 0.1
