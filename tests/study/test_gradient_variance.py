"""The variance of the policy gradient: exact where it is known, and measured on a real policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import recipe, refused

from sppo_lit.callbacks.gradients import Sketch
from sppo_lit.cli.main import main
from sppo_lit.study import gradients as gv

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_sketch_keeps_inner_products() -> None:
    g = torch.Generator().manual_seed(3)
    a, b = (torch.randn(20_000, generator=g) for _ in range(2))
    b += 0.5 * a
    sketch = Sketch(20_000, 4096)
    x, y = sketch([a[:5000].view(50, 100), a[5000:]]), sketch([b[:5000].view(50, 100), b[5000:]])
    assert x.shape == (4096,) and float(x @ y) == pytest.approx(float(a @ b), abs=4 * float(a.norm() * b.norm()) / 64)
    assert torch.allclose(sketch([a + b]), x + y, atol=1e-3), "linear"


def synthetic(count: int, samples: int, width: int = 64) -> list[gv.Measured]:
    """Scores that tell a little of the reward (something is to be learned) and are equally long; V is wrong."""
    g = torch.Generator().manual_seed(5)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=g), dim=0)
    problems = []
    for _ in range(count):
        p = 0.1 + 0.8 * float(torch.rand((), generator=g))
        rewards = (torch.rand(samples, generator=g) < p).double()
        scores = torch.randn(samples, width, generator=g) + 0.3 * (rewards - p)[:, None].float() * direction
        v = p + 0.3 * float(torch.randn((), generator=g))
        problems.append(gv.Measured(rewards, torch.full((samples,), 50.0).double(), scores, {"v": v}, {}))
    return problems


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return gv.measure(synthetic(240, 16))


def test_measured_variances_agree_with_theory(numbers: dict[str, Any]) -> None:
    compared = 0
    for name, row in {**numbers["baselines"], **numbers["critics"]}.items():
        if row["theory"] is None:
            continue
        compared += 1
        for what in ("variance", "squared_advantage"):
            estimate, low, high = row[what]
            slack = 0.04 * estimate
            assert low - slack <= row["theory"][0] <= high + slack, (name, what, row)
    assert compared == 8 + 8
    rows = numbers["baselines"]
    for n in (2, 4, 8):
        assert rows[f"leave-one-out, N = {n}"]["theory"][0] == pytest.approx(n / (n - 1))
    centred, loo = (rows[f"{name}, N = 8"]["variance"][0] for name in ("group mean", "leave-one-out"))
    assert centred == pytest.approx(loo, rel=0.02)
    assert rows["best: mean weighted by |s|²"]["variance"][0] == pytest.approx(1, abs=0.15), "p itself here"
    assert numbers["squared_score_of_incorrect_by_correct"][0] == pytest.approx(1, abs=0.05)
    assert rows["no baseline"]["cosine"][0] < rows["leave-one-out, N = 8"]["cosine"][0]


def test_variance_is_that_of_many_minibatches() -> None:
    """Of groups of 4 on a population that is the measurement itself, drawn 4,000 times."""
    problems = synthetic(60, 16)
    weights = torch.ones(1, 60, dtype=torch.float64)
    estimator = gv.estimators(problems)["leave-one-out, N = 4"]
    g = torch.Generator().manual_seed(0)
    units = [estimator(m, 0.0, g).units for m in problems]
    which = torch.randint(0, 60, (4000, 8), generator=g)
    at = torch.randint(0, len(units[0]), (4000, 8), generator=g)
    draws = torch.stack(units)[which, at].mean(dim=1)
    by_hand = float(draws.var(dim=0).sum()) * 32  # sequences of a minibatch
    found = gv.moments(estimator, problems)
    base = gv.spread(problems, weights)
    ours = float(gv._variance(found, torch.ones(1), base, weights)[0] * base.right[0])
    assert ours == pytest.approx(by_hand, rel=0.1)


def test_scores_that_tell_the_reward_make_another_baseline_best() -> None:
    """Incorrect responses have scores three times as long: the best baseline is p / (p + 9 (1 − p)), far below p."""
    problems = [
        gv.Measured(m.rewards, m.lengths, m.scores * (3 - 2 * m.rewards[:, None].float()), {"v": 0.0}, {})
        for m in synthetic(240, 32)
    ]
    numbers = gv.measure(problems)
    rows = numbers["baselines"]
    assert numbers["squared_score_of_incorrect_by_correct"][0] == pytest.approx(9, rel=0.05)

    def mean(f: Any) -> float:
        p = torch.linspace(0.1, 0.9, 1001, dtype=torch.float64)
        return float(f(p).mean())

    def second(p: torch.Tensor, b: Any) -> torch.Tensor:
        return p * (1 - b) ** 2 + 9 * (1 - p) * b**2

    right = mean(lambda p: second(p, p))
    for name, expected in (
        ("no baseline", mean(lambda p: second(p, 0.0)) / right),
        ("best: mean weighted by |s|²", mean(lambda p: second(p, p / (p + 9 * (1 - p)))) / right),
        ("leave-one-out, N = 2", mean(lambda p: second(p, p) + p * (1 - p) * (p + 9 * (1 - p))) / right),
    ):
        estimate, low, high = rows[name]["alone"]
        assert low - 0.05 * estimate <= expected <= high + 0.05 * estimate, name
    assert rows["no baseline"]["variance"][0] < rows["leave-one-out, N = 2"]["variance"][0]
    assert rows["no baseline"]["theory"][0] > 2, "where scores told nothing it would be the worst"


def test_horizons_are_thirds_by_length() -> None:
    problems = synthetic(30, 16)
    longer = [gv.Measured(m.rewards, m.lengths + i, m.scores, m.values, {}) for i, m in enumerate(problems)]
    found = gv.horizons(longer, gv.estimators(longer))
    assert [row["tokens"] for row in found.values()] == [54.5, 64.5, 74.5]
    assert all(row["leave-one-out, N = 2"][0] > 1.3 for row in found.values())


@pytest.mark.usefixtures("alone")
def test_a_real_policy_is_measured_and_an_interrupted_measurement_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = {
        "model.policy": {"path": str(Path("data/arithmetic/warmstart").resolve())},
        "model.sampling": {"temperature": 1.0, "max_new_tokens": 24},
        "model.critic": {"path": str(Path("data/arithmetic/base").resolve()), "init": "random"},
        "model.critic_optimizer": {"lr": 0.01},
        "data.val": [{"path": "arithmetic", "limit": 6}],
        "trainer.max_epochs": 1,
        "model.ppo": {"critic_warmup": 1},
    }
    for algorithm in ("sppo", "ppo"):
        assert main(["run", str(recipe(tmp_path, {**warm, "model.algorithm": algorithm}, f"{algorithm}.yaml"))]) == 0
    runs = [str(tmp_path / "runs" / name / "version_0") for name in ("sppo", "ppo")]
    folder = tmp_path / "gradients"
    command = [
        "run", "validate", str(tmp_path / "recipes" / "sppo.yaml"), "--model.policy_only=true",
        "--trainer.callbacks+=sppo_lit.callbacks.gradients.GradientSamples",
        f"--trainer.callbacks.folder={folder}", "--trainer.callbacks.samples=8",
        f"--trainer.callbacks.critics={runs}",
    ]  # fmt: skip
    assert main(command) == 0
    files = sorted(folder.glob("*.pt"))
    assert len(files) == 6 and "gradients: 6 of 6 problems" in capsys.readouterr().out
    before = [file.read_bytes() for file in files]
    record = torch.load(files[0], weights_only=True)
    assert record["scores"].shape == (8, 8192) and record["scores"].abs().sum() > 0
    assert set(record["values"]) == {"sppo", "ppo"} and set(record["value_scores"]) == {"ppo"}
    files[2].unlink()
    assert main(command) == 0
    assert [file.read_bytes() for file in files] == before, "the missing one again, the same"
    assert main(["figure", "gradient_variance", str(folder), "--out", str(tmp_path / "g.png")]) == 0
    shown = capsys.readouterr().out
    assert "leave-one-out" in shown and (tmp_path / "g.svg").is_file()
    refused(capsys, tmp_path, ["figure", "gradient_variance", runs[0]], "0 measured problems")
    assert main([*command[:6], "--trainer.callbacks.samples=9", *command[7:]]) == 2
    assert "holds a measurement with other settings" in capsys.readouterr().err
    wrong = [*command[:6], "--trainer.callbacks.samples=4", *command[7:]]
    assert main(wrong) == 2 and "samples is 4" in capsys.readouterr().err
