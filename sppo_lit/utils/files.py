"""Atomic writing, replacing and copying of files and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces it if the block succeeds and is deleted if it fails.

    Args:
        target: file or folder to write; an older one stays untouched until the block has ended.

    Raises:
        OSError: the file cannot be written or moved.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        replace(temporary, target)
    finally:
        remove(temporary)


def replace(new: Path, target: Path) -> None:
    """Move the file or folder `new` to `target`, in place of what is there.

    Raises:
        OSError: it cannot be moved.
    """
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".{target.name}.old")
        remove(old)
        target.rename(old)
        new.rename(target)
        remove(old)
    else:
        os.replace(new, target)


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file through to the disk, so that replacing another file by it survives a power failure.

    Args:
        path: a file; a folder is left alone.

    Raises:
        OSError: it cannot be read or flushed.
    """
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def duplicate(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy for folders and file systems without hard links.

    Args:
        source: a file that is never modified in place, or a folder.
        target: replaced if it exists.

    Raises:
        OSError: it cannot be written.
    """
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
