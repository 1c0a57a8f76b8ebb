"""The baselines on two processes against one: groups, whitening, token counts and references over all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import Run, difference, equal, launch, repeatable

STRATEGIES = {"ddp": ("--strategy=ddp", "--devices=2"), "fsdp": ("--strategy=fsdp", "--devices=2")}
# Half of the groups of this seed are equal, on some minibatches all of one rank.
GROUPS = (
    "--model.algorithm=grpo",
    "--model.batch.samples_per_prompt=2",
    "--model.ppo.critic_warmup=0",
    "--model.advantage.drop_equal_groups=true",
    "--model.kl={coef: 0.1}",
    "--model.ppo.entropy_coef=0.01",
)
ALGORITHMS = {
    "ppo": ("--model.algorithm=ppo", "--model.advantage.lam=0.9"),
    "grpo": GROUPS,
    "reinforce": ("--model.algorithm=reinforce", "--model.ppo.critic_warmup=0"),
    "reinforce_pp": ("--model.algorithm=reinforce_pp", "--model.ppo.critic_warmup=0"),
    "vc_ppo": ("--model.algorithm=vc_ppo",),
    # Two visits of each prompt; those of a rank are other ones each time.
    "spo": ("--model.algorithm=spo", "--model.ppo.critic_warmup=0", "--data.train.limit=24"),
}


@pytest.fixture(scope="module", params=ALGORITHMS)
def one_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """The algorithm and what one process makes of it."""
    return request.param, launch(tmp_path_factory.mktemp("one"), *ALGORITHMS[request.param])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(one_process: tuple[str, Run], strategy: str, tmp_path: Path) -> None:
    algorithm, one = one_process
    two = launch(tmp_path, *ALGORITHMS[algorithm], *STRATEGIES[strategy])
    assert equal(*two.ranks)
    assert difference(one.ranks[0], two.ranks[0]) <= 1e-5
    for name, value in repeatable(one.metrics).items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    if algorithm == "grpo":
        assert 0 < one.metrics["rollout/kept"] < 1
