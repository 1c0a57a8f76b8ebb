"""Replacing and deleting as a file system shared over the network does it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sppo_lit.utils.files import remove, replace, written_whole


def test_a_rename_whose_answer_was_lost_has_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, target, rename = tmp_path / "new", tmp_path / "target", os.replace
    new.write_text("new")
    target.write_text("old")

    def twice(source: Any, destination: Any) -> None:
        rename(source, destination)
        rename(source, destination)

    monkeypatch.setattr(os, "replace", twice)
    replace(new, target)
    assert target.read_text() == "new" and not new.exists()
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "missing", target)


def test_a_folder_with_a_file_that_is_still_open_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, target, rmtree = tmp_path / "new", tmp_path / "target", shutil.rmtree
    for folder in (new, target):
        folder.mkdir()
        (folder / "weights").write_text(folder.name)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        (path / "weights").rename(path / ".nfs01")
        if not ignore_errors:
            raise OSError("Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    replace(new, target)
    assert (target / "weights").read_text() == "new" and not new.exists()
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    remove(target.with_name(".target.old"))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "metrics.csv").touch()
    with pytest.raises(IsADirectoryError), written_whole(tmp_path / "runs") as temporary:
        temporary.write_text("a file")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "metrics.csv"]


def test_a_folder_that_may_not_be_deleted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()

    def refuse(path: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        remove(tmp_path / "folder")
