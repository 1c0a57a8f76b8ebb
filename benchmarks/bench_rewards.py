"""Answers verified per second: the pool of workers against `math_verify.parse/verify` called directly in one process.

    python benchmarks/bench_rewards.py [--answers 256] [--repeats 3] [--workers 2]

Three mixes (integers as in GSM8K; MATH500's and Minerva's kinds of answers), each with no and with 5 % hanging answers.
Every repeat runs both sides one after the other, under the same load; the table gives the median answers per second,
the median of the repeats' ratios, and their ranges. Both sides get the same deadline
for an answer (math_verify: its own `timeout_seconds`, rounded up to whole seconds) and are warmed up first.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from sppo_lit.rewards.verifier import VerifierPool

Rows = tuple[list[str], list[str]]

MATH = [
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"), ("p - q", "-q+p"), (r"\text{Evelyn}", r"\text{Navin}"),
    (r"90^\circ", "90"), (r"3\sqrt{13}", r"\sqrt{117}"), ("6 - 5i", "6-5i"), ("x=5", "5"), ("1,-2", "-2, 1"),
    ("52_8", "53_8"), (r"\frac43", r"\frac{4}{3}"), ("x^5 - x^4 + x^3 - x^2 + x - 1", "(x-1)(x^4+x^2+1)"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 4/3 \end{pmatrix}"),
    ("(3,4]", "[3,4]"), (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"), ("12", "12"), ("-50", "50"),
    ("2000", "2,000"),
    (r"\frac{3}{56}", r"\frac{6}{112}"), ("10", "11"), ("0.25", r"\frac{1}{4}"), ("3", "3"), ("9", "9"),
]  # fmt: skip
MINERVA = [
    ("4.5e33", r"4.5 \times 10^{33}"), ("8.7e8", r"8.7 \times 10^{8} \mathrm{~cm}"), ("1.6", "1.6"), ("0.5", "0.05"),
    (r"\arcsin{(10/13)}", r"\sin^{-1}(10/13)"), (r"2 \pi / \omega", r"\frac{2\pi}{\omega}"), ("3e8", "3e8"),
    (r"-\tau \ln \Delta", r"\tau\ln(1/\Delta)"), (r"\hbar \omega(v+1/2)", r"\hbar\omega v"), ("1e-5", "10^{-5}"),
    (r"2 \cos (\pi t+\pi / 3)", r"2\cos(\pi t)"), ("5.47e5", "547000"), ("1.77e-6", r"1.77\times10^{-6}"), ("33", "33"),
]  # fmt: skip
HANGING = [
    (r"\prod_{k=1}^{10^{9}} (x+k)", "x^2+1"),
    (r"\prod_{k=1}^{10^{10}} (1+\frac{1}{k})", "5"),
    (r"\sum_{k=1}^{10^{9}} \sin(k)", "5"),
]


def mix(name: str, count: int, hanging: float) -> Rows:
    """`count` responses and their gold answers; a share of `hanging` of them hangs."""
    rng = random.Random(0)
    work = "First we note that the total is the sum of its parts, and then we add them. " * 12
    rows = []
    for i in range(count):
        if i < round(hanging * count):
            answer, gold = HANGING[i % len(HANGING)]
        elif name == "GSM8K-like":
            gold = str(rng.randint(1, 5000))
            answer = gold if rng.random() < 0.6 else str(rng.randint(1, 5000))
        else:
            gold, answer = rng.choice(MATH if name == "MATH500-like" else MINERVA)
        rows.append((f"{work} The answer is $\\boxed{{{answer}}}$.", gold))
    rng.shuffle(rows)
    return [r for r, _ in rows], [g for _, g in rows]


def direct(responses: list[str], golds: list[str], deadline: float) -> int:
    """Number of answers that math_verify, called as documented, judges correct."""
    from math_verify import parse, verify

    seconds, right = math.ceil(deadline), 0
    for response, gold in zip(responses, golds, strict=True):
        try:
            g, a = parse(f"${gold}$", parsing_timeout=seconds), parse(response, parsing_timeout=seconds)
            right += bool(verify(g, a, timeout_seconds=seconds))
        except BaseException as error:  # its TimeoutException is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
    return right


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--answers", type=int, default=256, help="answers per mix (default 256)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds for each answer (default 1)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warm = mix("MATH500-like", 64, 0)
    direct(*warm, args.deadline)
    table = Table(
        "mix",
        "hanging",
        "pool, answers/s",
        "spread",
        "direct, answers/s",
        "spread",
        "ratio",
        "spread",
        "right (pool/direct)",
    )
    with VerifierPool(args.workers, args.deadline) as pool:
        for _ in range(args.workers):  # every worker loads sympy
            pool.score(*warm)
        for name in ("GSM8K-like", "MATH500-like", "Minerva-like"):
            for hanging in (0.0, 0.05):
                responses, golds = mix(name, args.answers, hanging)
                sides: dict[str, Callable[[], int]] = {
                    "pool": lambda r=responses, g=golds: sum(v.reward == 1 for v in pool.score(r, g)),  # type: ignore[misc]
                    "direct": lambda r=responses, g=golds: direct(r, g, args.deadline),  # type: ignore[misc]
                }
                rates: dict[str, list[float]] = {side: [] for side in sides}
                right = dict.fromkeys(sides, 0)
                for _ in range(args.repeats):
                    for side, run in sides.items():
                        start = time.perf_counter()
                        right[side] = run()
                        rates[side].append(args.answers / (time.perf_counter() - start))
                middle = {side: statistics.median(r) for side, r in rates.items()}
                spread = {side: f"{min(r):,.0f}–{max(r):,.0f}" for side, r in rates.items()}
                ratios = [p / d for p, d in zip(rates["pool"], rates["direct"], strict=True)]
                table.add_row(
                    name, f"{hanging:.0%}", f"{middle['pool']:,.0f}", spread["pool"], f"{middle['direct']:,.0f}",
                    spread["direct"], f"{statistics.median(ratios):.1f}×",
                    f"{min(ratios):.1f}–{max(ratios):.1f}", f"{right['pool']}/{right['direct']}",
                )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
