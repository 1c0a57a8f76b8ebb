"""`data.select` in real training: which problems of a pool are answered, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cli_helpers import BASE, SMALL, recipe, refused
from grouped import grouped

from sppo_lit.settings import ModelSource, SelectSettings
from sppo_lit.training.datamodule import MathDataModule, ProblemSet
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.selection import prompt_keys
from sppo_lit.types import Encoded, Sampling

pytestmark = pytest.mark.usefixtures("alone")


class Remembering(SPPOModule):
    """Keeps, for each iteration, what it predicted of every problem of the pool and which ones it answered."""

    predicted: dict[str, float]
    chosen: list[str]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.seen: list[tuple[list[str], dict[str, float], list[str]]] = []
        assert self.critic is not None
        torch.nn.init.normal_(self.critic.model.get_parameter("score.weight"))  # V of a fresh critic is 1/2 everywhere
        collect = self.collector.collect

        def remembered(problems: list[Encoded], iteration: int) -> Any:
            data = self.trainer.datamodule
            pool = data.stream.take(iteration * data.problems_drawn, data.problems_drawn)
            predicted = {problem.key: self.predict(problem.key, ids) for problem, ids in pool}
            self.seen.append(([p.key for p, _ in pool], predicted, [p.key for p, _ in problems]))
            return collect(problems, iteration)

        self.collector.collect = remembered

    @torch.no_grad()
    def predict(self, key: str, ids: list[int]) -> float:
        """One prompt at a time."""
        if self.trainer.datamodule.select.by == "tracker":
            [(problem, _)] = [e for e in self.trainer.datamodule.stream.encoded if e[0].key == key]
            return float(self.memory_of_prompts.read(prompt_keys([problem])))
        return float(torch.sigmoid(self.critic(torch.tensor([ids]), torch.tensor([len(ids)]))))


def trained(select: SelectSettings, limit: int | None) -> tuple[Remembering, dict[str, float]]:
    """After four iterations of 8 problems: the module, and what was logged last."""
    torch.manual_seed(0)
    sampling = Sampling(max_new_tokens=8)
    module = Remembering(ModelSource(str(BASE), "random", SMALL), sampling=sampling, **grouped(minibatch_size=8))
    data = MathDataModule(ProblemSet("arithmetic", limit=limit), problems_per_epoch=8, select=select)
    silent: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", limit_val_batches=0, **silent)
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(("by", "target", "limit"), [("critic", 0.5, None), ("critic", 0.9, 12), ("tracker", 0.5, 40)])
def test_those_nearest_the_target_are_answered_and_the_stream_goes_on_by_the_pool(
    by: Any, target: float, limit: int | None
) -> None:
    module, logged = trained(SelectSettings(by, 3, target), limit)
    for pool, predicted, chosen in module.seen:
        assert len(set(chosen)) == 8 and set(chosen) < set(pool) and len(pool) == 24
        far = max(abs(predicted[key] - target) for key in chosen)
        assert all(abs(predicted[key] - target) >= far - 1e-6 for key in set(pool) - set(chosen))
        assert chosen == [key for i, key in enumerate(pool) if key in chosen and key not in pool[:i]]
    if limit is None:
        assert len({key for pool, *_ in module.seen for key in pool}) == 4 * 24
    pool, predicted, chosen = module.seen[-1]
    assert logged["select/pool_mean"] == pytest.approx(sum(predicted[key] for key in pool) / 24, abs=1e-5)
    assert logged["select/chosen_mean"] == pytest.approx(sum(predicted[key] for key in chosen) / 8, abs=1e-5)
    assert logged["time/select"] > 0
    if by == "tracker":
        assert len(set(predicted.values())) > 1 and logged["tracker/prompts"] > 8
        assert "critic/brier" in logged and "tracker/brier" not in logged, "the baseline is the critic's still"


def test_without_a_choice_nothing_is_drawn_in_vain() -> None:
    module, logged = trained(SelectSettings(), None)
    assert all(pool == chosen for pool, _, chosen in module.seen)
    assert not any("select" in name for name in logged)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data.select": {"by": "critic"}, "model.algorithm": "reinforce", "model.critic_optimizer": ...},
            "data.select.by is critic, but REINFORCE has no critic that values prompts; set it to tracker",
        ),
        ({"data.select": {"by": "critic"}, "model.algorithm": "ppo"}, "PPO has no critic that values prompts"),
        ({"data.select": {"by": "tracker"}}, "data.train makes new problems for ever; set data.train.limit"),
        ({"data.select": {"by": "critic", "pool": 1}}, "data.select: pool is 1; it must be at least 2"),
        ({"data.select": {"target": 1.5}}, "data.select: target is 1.5; it must be from 0 to 1"),
        (
            {"data.select": {"by": "critic"}, "data.problems_per_epoch": 300_000},
            "data.problems_per_epoch is 300,000 × data.select.pool 4",
        ),
        (
            {
                "model": {
                    "class_path": "sppo_lit.SupervisedModule",
                    "init_args": {"policy": {"path": str(BASE)}, "batch": {"minibatch_size": 4}},
                },
                "data.select": {"by": "tracker"},
            },
            "data.select: supervised training learns every problem it draws",
        ),
    ],
)
def test_what_cannot_be_chosen_by_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], said)
