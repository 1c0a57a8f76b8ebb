"""Atomic writing, replacing and copying of files and folders."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

UMASK = os.umask(0)
"""Of this process; it can only be read by setting it."""
os.umask(UMASK)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces it if the block succeeds and is deleted if it fails.

    Args:
        target: file or folder to write; an older one stays untouched until the block has ended.

    Raises:
        OSError: the file cannot be written or moved; a folder stands where a file is to be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        if target.is_dir() and not temporary.is_dir():  # it would go, with all that is in it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        _readable(temporary)
        replace(temporary, target)
    finally:
        remove(temporary)


def _readable(path: Path) -> None:
    """Give files the mode that the umask leaves; some libraries write them for their owner alone."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~UMASK)


def is_name(text: str) -> bool:
    """Whether this is the name of one file or folder, and not a path."""
    return text not in ("", ".", "..") and Path(text).name == text


def replace(new: Path, target: Path) -> None:
    """Move the file or folder `new` to `target`, in place of what is there.

    Raises:
        OSError: it cannot be moved.
    """
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".{target.name}.old")
        remove(old)
        _rename(target, old)
        _rename(new, target)
        remove(old)
    else:
        _rename(new, target)
    flush(target.parent)


def _rename(old: Path, new: Path) -> None:
    """Rename, in place of a file that is there.

    On NFS a request whose answer was lost is sent again, and answered that `old` does not exist.
    """
    identity = old.lstat()
    try:
        os.replace(old, new)
    except FileNotFoundError:
        if not os.path.lexists(new) or not os.path.samestat(identity, new.lstat()):
            raise


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, if it exists.

    Raises:
        OSError: it cannot be deleted. (NFS keeps files that a process has open under other names: a folder is emptied
            as far as possible, moved out of the way, and deleted the next time.)
    """
    for left in path.parent.glob(f".{path.name}.*.nfs"):
        shutil.rmtree(left, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except OSError:
            if any(not file.name.startswith(".nfs") for file in path.rglob("*") if not file.is_dir()):
                raise
            path.rename(path.with_name(f".{path.name}.{os.urandom(4).hex()}.nfs"))
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file, or the entries of a folder, through to the disk, so that they survive a power failure.

    Raises:
        OSError: it cannot be read or flushed.
    """
    with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems do not flush folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def duplicate(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy for folders and file systems without hard links.

    Args:
        source: a file that is never modified in place, a folder, or a symbolic link in the folder of `target`.
        target: replaced if it exists.

    Raises:
        OSError: it cannot be written.
    """
    remove(target)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
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
