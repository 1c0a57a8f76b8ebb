"""What may be installed beside this package."""

from __future__ import annotations

import re

from cli_helpers import ROOT
from packaging.requirements import Requirement


def test_lightning_releases_with_malware_are_refused() -> None:
    """GHSA-w37p-236h-pfx3."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib needs Python 3.11
    named = re.findall(r'"(lightning[^"a-z]*)"', project)
    assert len(named) == 1
    allowed = Requirement(named[0]).specifier
    assert "2.6.2" not in allowed and "2.6.3" not in allowed
    pinned = re.findall(r"^lightning==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned and pinned[0] in allowed
