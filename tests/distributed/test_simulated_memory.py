"""What is simulated with tensors without contents is what two ranks of a real run allocate."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from launch import ROOT, finished

from sppo_lit.doctor.memory import Plan, needs
from sppo_lit.models.loading import CONFIGS
from sppo_lit.settings import ModelSource

pytestmark = pytest.mark.slow
SHAPE = json.loads((CONFIGS / "SmolLM2-135M-Instruct.json").read_text(encoding="utf-8"))
CONFIG = {key: SHAPE[key] for key in SHAPE if key.endswith("_size") or key.startswith("num_")} | {"head_dim": 64}
CONFIG |= {} if "SPPO_THOROUGH" in os.environ else {"num_hidden_layers": 10}
PATH = str(ROOT / "data" / "arithmetic" / "base")  # for its tokenizer
PROMPT, RESPONSE, TOKENS, SEQUENCES = 40, 24, 128, 8
LIMIT = 600
OF_CI = [("32-true", "all"), ("bf16-mixed", "none")]
SETTINGS = list(product(("32-true", "bf16-mixed"), ("none", "all"))) if "SPPO_THOROUGH" in os.environ else OF_CI
"""With SPPO_THOROUGH=1 in the environment all of them and all layers, minutes each."""


@pytest.mark.parametrize(("precision", "offload"), SETTINGS)
def test_simulated_peaks_are_within_ten_percent_of_measured_ones(tmp_path: Path, precision: str, offload: str) -> None:
    settings = {"path": PATH, "config": CONFIG, "precision": precision, "offload": offload}
    sizes = {"prompt": PROMPT, "response": RESPONSE, "tokens": TOKENS, "sequences": SEQUENCES}
    script = Path(__file__).with_name("measured_run.py")
    finished([[sys.executable, str(script), str(tmp_path), json.dumps(settings | sizes)]], LIMIT)
    source = ModelSource(PATH, init="random", config=CONFIG)
    plan = Plan(source, source, "scalar", None, precision, 2, True, TOKENS, PROMPT, RESPONSE, SEQUENCES // 2)
    rows = needs(replace(plan, offload_while_sampling=offload))
    for rank in (0, 1):
        measured = json.loads((tmp_path / f"memory{rank}.json").read_text(encoding="utf-8"))
        for phase in ("sampling", "updating"):
            simulated = sum(getattr(row, phase) for row in rows)
            print(
                f"{precision}, {offload}, rank {rank}, {phase}: {simulated / 2**20:.0f}, {measured[phase] / 2**20:.0f}"
            )
            assert simulated == pytest.approx(measured[phase], rel=0.1), rows
