"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from sppo_lit.errors import InputError
from sppo_lit.utils.console import console

NAME = ".lock"
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
NO_LOCKS = "this file system has no locks; do not start a second process in this folder"


class FolderLock:
    """A lock on a folder, held from its construction until `release` or the end of the process, even by SIGKILL.

    It is the kernel's (`flock`); what the file says serves only messages. On NFS it holds between machines unless the
    share is mounted with `nolock` or `local_lock`; a file system without locks is used without one, after a warning.

    Args:
        folder: exists.

    Raises:
        InputError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        while True:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                    break
            except FileNotFoundError:
                pass  # as below: whoever held it has just removed the file
            except OSError as error:
                holder = os.pread(self._fd, 200, 0).decode("utf-8", "replace").strip()
                if error.errno in UNSUPPORTED:
                    console.print(f"{folder}: {NO_LOCKS}", markup=False, soft_wrap=True)
                    return
                os.close(self._fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise InputError(
                    f"{folder}: {holder or 'another process'} is still writing to this run; wait for it or stop it, "
                    "then try again"
                ) from None
            os.close(self._fd)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let others in, and leave no file behind."""
        self._path.unlink(missing_ok=True)  # while it is held: `__init__` sees that its file is another one
        os.close(self._fd)
