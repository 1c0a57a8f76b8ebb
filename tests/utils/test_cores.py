"""How threads wait is settled before torch reads it, and never against the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sppo_lit.utils.cores import SPINS, share_cores

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    "given", [{}, *({name: value} for name, value in zip(NAMES, ("ACTIVE", "7", "2"), strict=True))]
)
def test_what_the_user_has_set_stays(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == (given or {"GOMP_SPINCOUNT": SPINS})


def test_torch_is_not_loaded_before() -> None:
    code = "import sys, sppo_lit.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
