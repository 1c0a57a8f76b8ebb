"""Without a connection to the Hub a run says so at once, in one line, instead of asking for half a minute."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants as constants
import pytest
from cli_helpers import recipe, refused

from sppo_lit.utils import hub

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def cut_off(alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No address can be resolved, and the Hub's libraries are not told to stay offline."""

    def no_route(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", no_route)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model.policy": {"path": "someone/a-model"}}, "someone/a-model"),
        ({"data.train": {"path": "someone/a-set"}}, "someone/a-set"),
    ],
)
def test_no_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], what: str) -> None:
    start = time.monotonic()
    parts = (what, "there is no connection to huggingface.co", "local copy", "HF_HUB_OFFLINE=1")
    refused(capsys, tmp_path, ["run", recipe(tmp_path, changes)], *parts)
    assert time.monotonic() - start < 20


def test_told_to_stay_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = recipe(tmp_path, {"model.policy": {"path": "someone/a-model"}})
    refused(capsys, tmp_path, ["run", file], "someone/a-model", "not in the Hub's cache", "HF_HUB_OFFLINE is set")
