"""What importing the package loads, what a wheel carries, and what may be installed beside it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def test_importing_the_package_is_cheap() -> None:
    """The processes that judge answers must not load torch, nor should `sppo --help`."""
    code = (
        "import sys, sppo_lit, sppo_lit.cli.main, sppo_lit.types, sppo_lit.rewards.math.answers\n"
        "sppo_lit.cli.main.main(['--help'])\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_carries_recipes_and_weights(tmp_path: Path) -> None:
    """`sppo list` and the quickstart work where there is no clone."""
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    data = ROOT / "data"
    shipped = [
        *(ROOT / "recipes").rglob("*.yaml"),
        data / "arithmetic" / "base" / "config.json",
        *data.glob("worked_*.jsonl"),
    ]
    for path in shipped:
        assert f"sppo_lit/share/{path.relative_to(ROOT).as_posix()}" in names
    assert "sppo_lit/py.typed" in names and not any("tests/" in n or "downloads/" in n for n in names)
    code = (
        "import sys; sys.path.insert(0, 'site'); from sppo_lit.cli.main import main, translate\n"
        "assert main(['list']) == 0; print(translate(['recipes/quickstart.yaml'])[2])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    assert "recipes/gsm8k/sppo.yaml" in done.stdout
    assert "site/sppo_lit/share/recipes/quickstart.yaml" in done.stdout


def test_lightning_releases_with_malware_are_refused() -> None:
    """GHSA-w37p-236h-pfx3."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib needs Python 3.11
    named = re.findall(r'"(lightning[<>=!~][^"]*)"', project)
    assert len(named) == 1
    allowed = Requirement(named[0]).specifier
    assert "2.6.2" not in allowed and "2.6.3" not in allowed
    pinned = re.findall(r"^lightning==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned and pinned[0] in allowed


def test_hooks_are_pinned_to_the_versions_of_ci() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for rev in re.findall(r"^ +rev: (\S+)$", hooks, re.MULTILINE):
        assert re.fullmatch(r"v\d+\.\d+\.\d+", rev)
    [ruff] = re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks)
    assert f"\nruff=={ruff}\n" in constraints


def test_addresses_agree() -> None:
    """Clone URL, badges, site and package metadata name one repository."""
    address = "https://github.com/sppo-lit/sppo-lit"
    for file in ("pyproject.toml", "README.md", "mkdocs.yml", "docs/start.md", "CITATION.cff"):
        assert address in (ROOT / file).read_text(encoding="utf-8"), file
