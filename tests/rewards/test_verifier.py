"""The pool of worker processes: what it survives, and what it costs the process that asks."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from sppo_lit.errors import InputError
from sppo_lit.rewards.verifier import VerifierPool

SLEEPER = """
import os, time
def sleeper(response, gold):
    if "hang" in response: time.sleep(60)
    if "die" in response: os._exit(3)
    if "raise" in response: raise KeyError("no such thing")
    if "nan" in response: return float("nan")
    print("noise on stdout")
    return len(response)
def spin(response, gold):
    if "spin" in response: 3 ** (10 ** 9)
    return 1.0
def environment(response, gold):
    return float(any("TOKEN" in k or "SECRET" in k for k in os.environ))
def torch_loaded(response, gold):
    import sys
    return float("torch" in sys.modules)
def sympy_loaded(response, gold):
    import sys
    return float("sympy" in sys.modules)
def memory(response, gold):
    import resource
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards_of_mine.py"
    path.write_text(SLEEPER)
    return path


def gone(pids: list[int], seconds: float = 10) -> bool:
    """Whether no process of these ids is left, not even as a zombie."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def pids(pool: VerifierPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def test_verdicts_come_in_order_with_their_reasons() -> None:
    responses = [r"\boxed{1}", "none", r"\boxed{(x+1)^2}", r"\boxed{3}", "cut"]
    golds = ["1", "2", "x^2+2x+1", "4", "5"]
    with VerifierPool(workers=2) as pool:
        verdicts = pool.score(responses, golds, [True, True, True, True, False])
        assert pool.score([], []) == []
        workers = pids(pool)
    assert [v.reason for v in verdicts] == ["correct", "no_answer", "correct", "wrong", "truncated"]
    assert [v.reward for v in verdicts] == [1, 0, 1, 0, 0]
    assert verdicts[2].answer == "(x+1)^2" and all(v.seconds < 5 for v in verdicts)
    assert gone(workers)


def test_the_pool_and_a_direct_call_give_the_same_verdict() -> None:
    """For every case of the table, and where neither side has a value that could be computed."""
    from rewards.test_answers import read_cases

    from sppo_lit.rewards.math.answers import judge

    pairs = [(gold, f"\\boxed{{{answer}}}") for gold, answer, _ in read_cases()]
    pairs += [(r"\frac{dy}{dx}", r"\boxed{\frac{dx}{dy}}"), (r"p \to q", r"\boxed{q \to p}"), ("A^T", r"\boxed{A}")]
    with VerifierPool(workers=1) as pool:
        verdicts = pool.score([response for _, response in pairs], [gold for gold, _ in pairs])
    for (gold, response), verdict in zip(pairs, verdicts, strict=True):
        assert (verdict.reward, verdict.reason, verdict.answer, verdict.rule) == judge(response, gold), (gold, response)


def test_512_integers_cost_the_asking_process_milliseconds() -> None:
    responses = ["Let us see. " * 400 + f"\\boxed{{{i}}}" for i in range(512)]
    golds = [str(i) for i in range(512)]
    with VerifierPool(workers=2) as pool:
        pool.score(responses[:8], golds[:8])
        start = time.process_time()
        verdicts = pool.score(responses, golds)
        spent = time.process_time() - start
    assert all(v.reward == 1 for v in verdicts)
    assert spent < 0.2


def test_a_hanging_answer_costs_its_deadline_and_nothing_else(reward_file: Path) -> None:
    """Even one that never returns to Python's interpreter, where no signal handler would run."""
    spec = f"{reward_file}:spin"
    with VerifierPool(workers=2, deadline=1.0, functions=[spec]) as pool:
        pool.score(["warm"] * 2, ["1"] * 2)
        start = time.monotonic()
        responses, golds = (
            [f"{'spin' if i in (3, 17) else ''} \\boxed{{{i}}}" for i in range(40)],
            list(map(str, range(40))),
        )
        verdicts = pool.score(responses, golds)
        values = pool.custom(responses, golds)
        assert time.monotonic() - start < 8
        workers = pids(pool)
    assert all(v.reward == 1 for v in verdicts)  # a verdict does not wait for custom rewards
    assert [i for i, value in enumerate(values[spec]) if value != 1] == [3, 17] and math.isnan(values[spec][3])
    assert pool.errors[spec] == 2
    assert gone(workers)


def test_a_killed_worker_costs_at_most_one_answer() -> None:
    with VerifierPool(workers=1, deadline=30) as pool:
        pool.score([r"\boxed{1}"], ["1"])
        victim = pids(pool)[0]
        threading.Timer(0.02, os.kill, (victim, signal.SIGKILL)).start()
        rows = [(f"\\boxed{{\\sqrt{{{i}}}}}", f"\\sqrt{{{i}}}+0") for i in range(2, 300)]
        verdicts = pool.score([r for r, _ in rows], [g for _, g in rows])
        assert pids(pool) != [victim]
    assert sum(v.reward == 0 for v in verdicts) <= 1


def test_works_from_threads_and_for_several_callers_at_once() -> None:
    results: dict[int, list[float]] = {}
    with VerifierPool(workers=2) as pool:

        def ask(n: int) -> None:
            verdicts = pool.score([f"\\boxed{{{i}}}" for i in range(50)], [str(i + (i % 5 == n)) for i in range(50)])
            results[n] = [v.reward for v in verdicts]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: [float(i % 5 != n) for i in range(50)] for n in range(4)}


def test_the_asking_process_stays_responsive() -> None:
    ticks = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    with VerifierPool(workers=1, deadline=1.0) as pool:
        pool.score([r"\boxed{x}"], ["y"])
        thread.start()
        pool.score([r"\boxed{\prod_{k=1}^{10^9} k}"], ["5"])
        stop.set()
        thread.join()
    assert max(b - a for a, b in pairwise(ticks)) < 0.5


def test_workers_hold_neither_secrets_nor_torch_and_load_sympy_late(
    reward_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    names = [f"{reward_file}:{n}" for n in ("environment", "torch_loaded", "sympy_loaded")]
    responses, golds = [r"\boxed{5}", r"\boxed{\frac{1}{2}}", "none"], ["5", "0.5", "1"]
    with VerifierPool(workers=1, functions=names) as pool:
        pool.score(responses, golds)
        assert pool.custom(responses, golds) == {name: [0, 0, 0] for name in names}


def test_custom_rewards_give_their_values_and_report_a_failure_once(
    reward_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, other = f"{reward_file}:sleeper", f"{reward_file}:spin"
    with VerifierPool(workers=2, deadline=1.0, functions=[other, spec]) as pool:
        responses = [r"\boxed{1}", "raise", "raise again", "nan", "die", "hang"]
        verdicts = pool.score(responses, ["1"] * 6)
        values = pool.custom(responses, ["1"] * 6)
        assert pool.score(responses[:1], ["1"])[0].reward == 1
        assert pool.custom([], []) == {other: [], spec: []}
    assert values[spec] == pytest.approx([9.0, *[math.nan] * 5], nan_ok=True)
    # The process that died took all values of its row with it.
    assert values[other] == pytest.approx([1, 1, 1, 1, math.nan, 1], nan_ok=True)
    assert [v.reward for v in verdicts] == [1, 0, 0, 0, 0, 0]  # the critic's labels: never shaped
    assert pool.errors == {spec: 5, other: 1}
    assert len([r for r in caplog.records if spec in r.getMessage()]) == 1 and "row" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such/file.py:f", "no file"),
        ("no function here", "package.module"),
        ("sppo_lit.no_such_module:f", "No module named"),
        ("sppo_lit.rewards.shaping:no_such_function", "has no function"),
        ("sppo_lit.rewards.shaping.no_such_function", "has no function"),
        ("sppo_lit.rewards.custom:SETTING", "of type str, not a function"),
    ],
)
def test_a_reward_that_is_not_there_is_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught, VerifierPool(functions=[spec]) as pool:
        pool.score(["a"], ["b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"deadline": 0.0}, {"memory_mb": 100}, {"memory_mb": -1}])
def test_impossible_settings_are_one_clear_line(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        VerifierPool(**settings)  # type: ignore[arg-type]


def test_workers_that_cannot_start_end_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="ended before they were ready"), VerifierPool(workers=1) as pool:
        pool.score([r"\boxed{1}"], ["1"])


def test_memory_hungry_answers_are_stopped_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "hungry.py"
    path.write_text("def eat(response, gold):\n    return len(bytearray(800 << 20))\n")
    spec = f"{path}:eat"
    with VerifierPool(workers=1, memory_mb=512, functions=[spec]) as pool:
        responses, golds = [r"\boxed{1}", r"\boxed{2}"], ["1", "2"]
        verdicts, values = pool.score(responses, golds), pool.custom(responses, golds)
    assert [v.reward for v in verdicts] == [1, 1] and all(map(math.isnan, values[spec]))
    assert pool.errors[spec] == 2


SCRIPT = """
import os, sys, time
from sppo_lit.rewards.verifier import VerifierPool
if __name__ != "__main__":
    raise SystemExit("the workers imported the parent's script")
pool = VerifierPool(workers=2)
pool.score([r"\\boxed{1}", r"\\boxed{2}"], ["1", "2"])
print(*[w.process.pid for w in pool._workers], flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "os._exit(1)", "raise KeyboardInterrupt"])
def test_no_worker_outlives_its_parent(end: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("{end}", end))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60)
    workers = [int(pid) for pid in run.stdout.split()]
    assert len(workers) == 2
    assert gone(workers)


def test_a_forked_child_gets_workers_of_its_own() -> None:
    with VerifierPool(workers=1) as pool:
        pool.score([r"\boxed{1}"], ["1"])
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            verdict = pool.score([r"\boxed{2}"], ["2"])[0]
            os.write(write, f"{verdict.reward} {pids(pool)[0]}".encode())
            pool.close()
            os._exit(0)
        os.waitpid(child, 0)
        reward, pid = os.read(read, 100).split()
        assert float(reward) == 1 and int(pid) not in pids(pool)
        assert pool.score([r"\boxed{3}"], ["3"])[0].reward == 1
