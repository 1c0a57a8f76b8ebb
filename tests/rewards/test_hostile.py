"""Answers written to break the grader: all judged, none right, nothing executed, no limit exceeded."""

import random
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from sppo_lit.rewards.verifier import VerifierPool


def hostile_answers(count: int, trap: Path) -> list[str]:
    """`count` boxed answers of every unpleasant kind, in a fixed random order."""
    rng = random.Random(0)
    run = f"open('{trap}', 'w').write('x')"

    def n(low: int, high: int) -> int:
        return rng.randint(low, high)

    kinds = [
        lambda: "9" * n(10_000, 1_000_000),
        lambda: "0." + "3" * n(10_000, 300_000),
        lambda: "-" * n(1_000, 100_000) + "5",
        lambda: f"1e{n(10**5, 10**9)}",
        lambda: f"10^{{{n(10**5, 10**12)}}}",
        lambda: "9^{9^{9^9}}",
        lambda: f"{n(2, 9)}^{{{n(2, 9)}^{{{n(2, 9)}^{{{n(7, 9)}}}}}}}",
        lambda: "^".join(str(n(2, 9)) for _ in range(n(4, 30))),
        lambda: f"{n(10**4, 10**7)}!",
        lambda: "(((3!)!)!)!" + "!" * n(0, 50),
        lambda: f"\\binom{{10^{n(6, 9)}}}{{5\\cdot 10^{n(5, 8)}}}",
        lambda: f"\\sum_{{k=1}}^{{10^{n(7, 12)}}} \\frac{{1}}{{k^2+k!}}",
        lambda: f"\\prod_{{k=1}}^{{10^{n(7, 12)}}} (1+\\frac{{1}}{{k}})",
        lambda: f"\\int_0^{{\\infty}} \\sin(x^{n(3, 9)}) e^{{-x^{n(2, 5)}}} \\ln(x+{n(1, 9)}) dx",
        lambda: "\\int " * n(2, 30) + "x" + " dx" * n(1, 30),
        lambda: "\\lim_{x\\to 0} " * n(1, 4) + "\\frac{\\sin x - x}{x^3}",
        lambda: "{" * n(1000, 100_000) + "5" + "}" * n(1000, 100_000),
        lambda: "(" * n(100, 3_000) + "5" + ")" * n(100, 3_000),
        lambda: "\\frac{1}{" * n(20, 400) + "2" + "}" * n(20, 400),
        lambda: "\\sqrt{" * n(20, 300) + "2" + "}" * n(20, 300),
        lambda: "\\boxed{" * n(100, 50_000) + "6",
        lambda: "\\begin{pmatrix}" + "\\\\".join("&".join(["1"] * 300) for _ in range(n(50, 300))) + "\\end{pmatrix}",
        lambda: "\\det\\begin{pmatrix}" + "\\\\".join("&".join(["x"] * 9) for _ in range(9)) + "\\end{pmatrix}",
        lambda: ",".join(str(i) for i in range(n(1_000, 50_000))),
        lambda: "\\pm".join(["1"] * n(10, 2_000)),
        lambda: "\\cup".join(f"({i},{i + 1})" for i in range(n(50, 400))),
        lambda: "+".join(f"\\sin({i}x)^{i}" for i in range(n(5, 60))),
        lambda: "(x+y+z+w)^{" + str(n(50, 5_000)) + "}",
        lambda: "x^{x^{x^{x^{x}}}}",
        lambda: "\\sqrt{x+\\sqrt{x+\\sqrt{x+" * n(2, 20) + "x" + "}}}" * n(2, 20),
        lambda: f"__import__('os').system('touch {trap}')",
        lambda: f'eval("{run}")',
        lambda: f"(lambda: {run})()",
        lambda: "().__class__.__bases__[0].__subclasses__()",
        lambda: "\\text{__import__}('os').system('id')",
        lambda: "x.__class__.__mro__[1].__subclasses__()",
        lambda: f"Symbol('x').func.__globals__['__builtins__']['exec'](\"{run}\")",
        lambda: "\x00" * n(1, 1000) + "5",
        lambda: "5\x00",
        lambda: "".join(chr(n(1, 0x10FFFF)) for _ in range(n(1, 400))),
        lambda: "\ud800\udfff" * n(1, 50),
        lambda: "٣" * n(1, 100),
        lambda: "５" * 2,
        lambda: "\u202e5\u202c6",
        lambda: "\\" * n(1, 100_000),
        lambda: "%" * n(1, 1_900) + "x",
        lambda: "\\text{" * n(1, 300),
        lambda: " " * n(1, 1_000_000),
        lambda: "5" + " or 6" * n(1, 300),
        lambda: "=".join(str(i) for i in range(n(2, 300))),
        lambda: "5" + "," * n(1_000, 100_000),
        lambda: "\\frac{0}{0}",
        lambda: "\\frac{5}{0}",
        lambda: "\\text{any number}",
        lambda: "x",
        lambda: "nan",
        lambda: "\\infty-\\infty",
        lambda: "True",
        lambda: "*",
    ]
    return [f"So the answer is \\boxed{{{kinds[i % len(kinds)]()}}}." for i in range(count)]


def attack(count: int, deadline: float, trap: Path) -> None:
    golds = ["5", "\\frac{1}{2}", "x^2+1", "\\sqrt{2}", "(1,2)", "\\text{yes}", "1.6e-19", "[0,1)"]
    answers = hostile_answers(count, trap)
    memory_mb, workers = 1024, 2
    peak, ticks, stop = 0, [time.monotonic()], threading.Event()
    pool = VerifierPool(workers=workers, deadline=deadline, memory_mb=memory_mb)

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            ticks.append(time.monotonic())
            for worker in list(pool._workers):
                try:
                    status = Path(f"/proc/{worker.process.pid}/status").read_text()
                except OSError:
                    continue
                found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak")]
                peak = max(peak, *found, 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    with pool:
        verdicts = pool.score(answers, [golds[i % len(golds)] for i in range(count)])
        seconds = time.monotonic() - start
        assert pool.score([r"\boxed{5}"], ["5"])[0].reward == 1
    stop.set()
    watcher.join()
    assert len(verdicts) == count
    paid = [(a[:200], v) for a, v in zip(answers, verdicts, strict=True) if v.reward != 0]
    assert not paid
    assert not trap.exists()
    assert 0 < peak <= memory_mb * 1024
    assert seconds < deadline * count / workers
    assert max(b - a for a, b in pairwise(ticks)) < 2.0
    print({r: sum(v.reason == r for v in verdicts) for r in {v.reason for v in verdicts}}, f"{seconds:.1f} s", peak)


def test_200_hostile_answers(tmp_path: Path) -> None:
    attack(200, 0.5, tmp_path / "trap")


@pytest.mark.slow
def test_2000_hostile_answers(tmp_path: Path) -> None:
    attack(2000, 2.0, tmp_path / "trap")
