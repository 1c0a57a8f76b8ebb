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


SLOWEST = ("test_simulated_memory", "test_hostile", "test_quickstart", "test_baselines", "test_fsdp", "test_mutations")
"""Files that take long; with ``--no-loadscope-reorder`` they are handed out first: both workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves of runs, which take longer to draw than most of them run, but in tests marked `curves`."""
    if request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr("sppo_lit.callbacks.curves.draw", lambda *args, **options: None)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a seed that does not reach other tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
