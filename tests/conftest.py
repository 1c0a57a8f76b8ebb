"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def datasets_dir() -> Path:
    """Folder of real problem sets beside the checkout; the test is skipped where there is none."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "datasets").is_dir():
            return parent / "shared" / "datasets"
    pytest.skip("no shared/datasets beside this checkout")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a seed that does not reach other tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
