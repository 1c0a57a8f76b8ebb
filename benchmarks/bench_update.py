"""Policy update on length-sorted, token-budget micro-batches against padded ones, on responses of different lengths.

    python benchmarks/bench_update.py [--rounds 7] [--threads 1] [--budget 2048] [--device cpu]
                                      [--lengths uniform|quickstart]

One update (forward and backward through `Policy` and the clipped surrogate) of 128 sequences whose responses have 16 to
96 tokens (uniform), cut in three ways with the same token budget per forward pass, rounds of the three interleaved:

- ours: sorted by length and cut by `micro_batches`;
- padded to limit: a fixed number of sequences in random order, every response padded to the longest allowed one and
  computed to its end, padding masked in the loss (the usual way);
- padded to longest: the same, but each micro-batch padded only to its own longest row.

Prompts have 4 to 20 tokens (uniform), as those of the quickstart. All three ways give the same loss and gradient; this
is checked before anything is timed. "tokens" are those that pass through the model, padding included; "no padding" is
the upper bound of the speed-up over padding to the limit, if time were proportional to tokens.

`--lengths quickstart` takes prompts and worked solutions of the quickstart problems instead (solutions of 4 to about 50
tokens, most of them short), under the same limit, as in a run whose limit is far above most responses.
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
from torch import Tensor

from sppo_lit.algorithms.batching import micro_batches
from sppo_lit.algorithms.losses import clipped_surrogate
from sppo_lit.algorithms.masking import masked_sum, response_mask
from sppo_lit.models.policy import Policy
from sppo_lit.problems.arithmetic import ArithmeticTask

SEQUENCES, SHORTEST, LONGEST, VOCABULARY = 128, 16, 96, 28
PROMPT_SHORTEST, PROMPT_LONGEST = 4, 20
SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "4M": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8},
}


def ragged_lengths(kind: str) -> tuple[Tensor, Tensor]:
    """Tokens of every prompt and response, both [SEQUENCES] int64."""
    if kind == "quickstart":
        task = ArithmeticTask(1, 5, largest=50)
        problems = [task.problem(i) for i in range(SEQUENCES)]
        # One token per character, one for the box, and the end-of-sequence token.
        responses = [len(str(p.solution)) - 5 for p in problems]
        return torch.tensor([len(p.prompt) for p in problems]), torch.tensor(responses)
    rng = random.Random(0)
    prompts = torch.tensor([rng.randint(PROMPT_SHORTEST, PROMPT_LONGEST) for _ in range(SEQUENCES)])
    return prompts, torch.tensor([rng.randint(SHORTEST, LONGEST) for _ in range(SEQUENCES)])


def sides(
    policy: Policy, prompt_lengths: Tensor, lengths: Tensor, budget: int, device: str
) -> dict[str, Callable[[], float]]:
    """The three ways; each runs an update and returns its loss."""
    tokens = int(lengths.sum())
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, VOCABULARY, (SEQUENCES, PROMPT_LONGEST), generator=generator).to(device)
    responses = torch.randint(1, VOCABULARY, (SEQUENCES, LONGEST), generator=generator).to(device)
    old = torch.full((SEQUENCES, LONGEST), -3.3, device=device)
    advantages = torch.randn(SEQUENCES, generator=generator).to(device)

    def piece_loss(rows: Tensor, width: int, to_limit: bool) -> Tensor:
        true = lengths[rows].to(device)
        computed = torch.full_like(true, width) if to_limit else true
        terms = policy(prompts[rows], prompt_lengths[rows].to(device), responses[rows, :width], computed, 1.0)
        loss = clipped_surrogate(terms.logprobs, old[rows, :width], advantages[rows]).loss
        return masked_sum(loss, response_mask(true, width)) / tokens

    def update(cut: Callable[[], list[Tensor]], to_limit: bool) -> float:
        policy.zero_grad()
        total = 0.0
        for rows in cut():
            loss = piece_loss(rows, LONGEST if to_limit else int(lengths[rows].max()), to_limit)
            loss.backward()
            total += loss.item()
        return total

    def in_random_order() -> list[Tensor]:
        return list(torch.randperm(SEQUENCES).split(max(1, budget // (PROMPT_LONGEST + LONGEST))))

    return {
        "ours": lambda: update(lambda: micro_batches(prompt_lengths + lengths, budget), False),
        "padded to limit": lambda: update(in_random_order, True),
        "padded to longest": lambda: update(in_random_order, False),
    }


def check_equal(policy: Policy, calls: dict[str, Callable[[], float]]) -> None:
    """Check that every way gives the same loss and gradient; also the warm-up."""
    results = []
    for call in calls.values():
        loss = call()
        results.append((loss, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])))
    for loss, gradient in results[1:]:
        assert abs(loss - results[0][0]) < 1e-5, (loss, results[0][0])
        assert torch.allclose(gradient, results[0][1], atol=1e-5), (gradient - results[0][1]).abs().max()


def computed_tokens(policy: Policy, call: Callable[[], float]) -> int:
    """Tokens, padding included, that pass through the model in one update."""
    counted = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal counted
        counted += kwargs["input_ids"].numel()

    with policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True):
        call()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description="Length-sorted token-budget micro-batches against padded ones")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads, for every way")
    parser.add_argument("--budget", type=int, default=2048, help="most tokens of one forward pass, padding included")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", choices=("uniform", "quickstart"), default="uniform")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    where = f"{args.threads} thread(s)" if args.device == "cpu" else args.device
    prompt_lengths, lengths = ragged_lengths(args.lengths)
    useful = int((prompt_lengths + lengths).sum())
    title = (
        f"update of {SEQUENCES} sequences, {int(lengths.min())}-{int(lengths.max())} response tokens, "
        f"{args.budget} tokens a forward, {args.rounds} rounds, {where}"
    )
    table = Table(title=title)
    columns = ("model", "parameters", "micro-batches", "tokens", "ms an update", "ours is faster, median", "min to max")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "micro-batches") else "right")
    for name, shape in SHAPES.items():
        policy = Policy(small_llama(shape, VOCABULARY, args.device)).train()
        calls = sides(policy, prompt_lengths, lengths, args.budget, args.device)
        check_equal(policy, calls)
        tokens = {way: computed_tokens(policy, call) for way, call in calls.items()}
        rounds = [{way: seconds(call, args.device) for way, call in calls.items()} for _ in range(args.rounds)]
        for way in calls:
            ratios = [times[way] / times["ours"] for times in rounds]
            size = f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f}M"
            ours = way == "ours"
            table.add_row(
                name if ours else "",
                size if ours else "",
                way,
                f"{tokens[way]:,}",
                f"{1000 * statistics.median(times[way] for times in rounds):,.0f}",
                "" if ours else f"{statistics.median(ratios):.2f}x",
                "" if ours else f"{min(ratios):.2f}x to {max(ratios):.2f}x",
            )
        ceiling = tokens["padded to limit"] / useful
        table.add_row("", "", "no padding", f"{useful:,}", "", f"at most {ceiling:.2f}x", "")
        table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
