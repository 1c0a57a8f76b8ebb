"""The gold answers of the files under shared/datasets, read without the project's own readers."""

import json
from collections.abc import Iterator
from pathlib import Path


def read_golds(folder: Path) -> Iterator[tuple[str, int, str]]:
    """(file name, row from 0, gold answer) of every row of every file."""
    import pyarrow.parquet as parquet

    for path in sorted(folder.rglob("*.parquet")):
        for row, item in enumerate(parquet.read_table(path, columns=["reward_model"]).to_pylist()):
            yield path.name, row, str(item["reward_model"]["ground_truth"])
    for path in sorted(folder.rglob("*.json")):
        for row, item in enumerate(json.loads(path.read_text(encoding="utf-8"))):
            yield path.name, row, str(item["answer"])
    for path in sorted(folder.rglob("*.jsonl")):
        for row, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            yield f"{path.parent.name}/{path.name}", row, json.loads(line)["answer"].split("####")[-1].strip()
