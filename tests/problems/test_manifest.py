"""data/manifest.json tells the truth about the table of sources and the local copies."""

import hashlib
import json
from pathlib import Path

from sppo_lit.problems.sources import SOURCES

MANIFEST = json.loads((Path(__file__).parents[2] / "data" / "manifest.json").read_text(encoding="utf-8"))["sources"]


def test_manifest_and_table_of_sources_agree():
    assert {n: (e["hub_id"], e["config"]) for n, e in MANIFEST.items()} == {
        n: (spec.hub_id, spec.config) for n, spec in SOURCES.items()
    }
    assert all(spec.split in MANIFEST[name]["splits"] for name, spec in SOURCES.items())


def test_local_copies_are_those_of_the_manifest(datasets_dir):
    for entry in MANIFEST.values():
        for copy in entry["local_copy"]:
            assert hashlib.sha256((datasets_dir / copy["path"]).read_bytes()).hexdigest() == copy["sha256"], copy[
                "path"
            ]
