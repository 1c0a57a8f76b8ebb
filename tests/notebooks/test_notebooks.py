"""The notebooks run from top to bottom, and show what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_helpers import ROOT


def test_no_outputs_are_kept() -> None:
    """They would grow the repository with every run."""
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert '"output_type"' not in notebook.read_text(encoding="utf-8"), notebook.name


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")  # the extra `notebook`, which .ci/run installs
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    before, after = map(float, re.search(r"accuracy: ([\d.]+)% before, ([\d.]+)% after", printed).groups())  # type: ignore[union-attr]
    assert 30 < before < after - 5, printed
    assert printed.count("V = 0.") == 3
