"""Useful tokens per second of our sampler against `model.generate`, on responses of different lengths.

    python benchmarks/bench_sampling.py [--rounds 5] [--threads 1] [--device cpu]

128 prompts whose responses end after 16 to 96 tokens (uniform), the same limits, temperature and random weights on both
sides, rounds of the two interleaved. Useful tokens are those up to each response's limit. Our sampler also computes
the log-probability of every token; `generate` does not.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import seconds, small_llama
from rich.console import Console
from rich.table import Table
from transformers import StoppingCriteria, StoppingCriteriaList

from sppo_lit.rollout import TorchEngine, sequence_key
from sppo_lit.types import Sampling

PROMPTS, SHORTEST, LONGEST, VOCABULARY, PAD, TEMPERATURE = 128, 16, 96, 40, 0, 1.0
SHAPES: dict[str, dict[str, Any]] = {
    "quickstart, 0.5M": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "4M": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8},
}


class RowLimits(StoppingCriteria):
    """Stops each row at its own length."""

    def __init__(self, limits: torch.Tensor, prompt_length: int):
        self.ends = limits + prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def sides(model: Any, device: str) -> tuple[Callable[[], None], Callable[[], None], int]:
    """Our sampler, `generate`, and the number of useful tokens of one call of either."""
    rng = random.Random(0)
    prompts = [[rng.randrange(1, VOCABULARY) for _ in range(rng.randint(10, 30))] for _ in range(PROMPTS)]
    limits = [rng.randint(SHORTEST, LONGEST) for _ in range(PROMPTS)]
    engine = TorchEngine(model, [], PAD, max_concurrent=PROMPTS)
    keys = [sequence_key(0, i) for i in range(PROMPTS)]
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=LONGEST)

    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    criteria = StoppingCriteriaList([RowLimits(torch.tensor(limits, device=device), width)])

    def ours() -> None:
        done = engine.generate(prompts, sampling, keys=keys, max_new_tokens=limits)
        assert [len(d.response_ids) for d in done] == limits

    def generate() -> None:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            max_new_tokens=LONGEST,
            stopping_criteria=criteria,
            pad_token_id=PAD,
        )
        assert out.shape[1] == width + max(limits)

    return ours, generate, sum(limits)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our sampler against model.generate")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads, for both sides")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    title = f"{PROMPTS} prompts, {SHORTEST}-{LONGEST} new tokens, {args.rounds} rounds, "
    table = Table(title=title + (f"{args.threads} thread(s)" if args.device == "cpu" else args.device))
    for column in ("model", "parameters", "ours, tokens/s", "generate, tokens/s", "ratio, median", "ratio, min to max"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, shape in SHAPES.items():
        model = small_llama(shape, VOCABULARY, args.device).eval()
        ours, generate, tokens = sides(model, args.device)
        for call in (ours, generate):
            call()
        rounds = [(seconds(ours, args.device), seconds(generate, args.device)) for _ in range(args.rounds)]
        ratios = [theirs / mine for mine, theirs in rounds]
        table.add_row(
            name,
            f"{model.num_parameters() / 1e6:.2f}M",
            f"{tokens / statistics.median(mine for mine, _ in rounds):,.0f}",
            f"{tokens / statistics.median(theirs for _, theirs in rounds):,.0f}",
            f"{statistics.median(ratios):.2f}x",
            f"{min(ratios):.2f}x to {max(ratios):.2f}x",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
