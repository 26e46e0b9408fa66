"""Locks on folders, which the kernel releases when a process ends, however it ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".sde-models.lock"
"""The file that is locked; it says which process holds it."""

BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
FAR = 1 << 30
"""What is locked on Windows, where nobody can read a byte that is locked."""

_held: set[int] = set()


class FolderLock:
    """One process, and one piece of work in it, at a time.

    Args:
        folder: A folder that is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = FolderLock(folder)
        ...     first.acquire()
        ...     try:
        ...         FolderLock(folder).acquire()
        ...     except BlockingIOError as error:
        ...         print(str(error).replace(folder, "FOLDER").split(":")[0])
        ...     first.release()
        process ... is working in FOLDER
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        In a folder that cannot be written to there is nothing to protect. Where the file system
        has no locks a warning says so.

        Raises:
            BlockingIOError: If it is taken.
            OSError: If the file cannot be made.
        """
        while self._descriptor is None:
            descriptor = self._open()
            if descriptor is None:
                return
            try:
                self._lock(descriptor)
                if self._is_there(descriptor):
                    self._note(descriptor)
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        _held.add(self._descriptor)

    def release(self) -> None:
        """Give the lock back, and remove its file."""
        # A fork has closed it, and may have opened another file by the same number.
        if self._descriptor in _held:
            with suppress(OSError):
                (self.folder / LOCK).unlink()
            os.close(self._descriptor)
            _held.discard(self._descriptor)
        self._descriptor = None

    def _open(self) -> int | None:
        """The file, which another user may have left; None in a folder that is only read."""
        file = self.folder / LOCK
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
        try:
            return os.open(file, os.O_RDONLY)
        except OSError:
            return None

    def _lock(self, descriptor: int) -> None:
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, FAR, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                holder = os.pread(descriptor, 200, 0) if hasattr(os, "pread") else b""
                who = holder.decode(errors="replace").strip() or "another process"
                raise BlockingIOError(
                    f"{who} is working in {self.folder}: wait until it has ended or stop it, or "
                    "choose another folder"
                ) from error
            warnings.warn(
                f"the file system of {self.folder} has no locks ({error.strerror}): make "
                "sure that no second process works there, since it would go unnoticed",
                RuntimeWarning,
                stacklevel=4,
            )

    def _is_there(self, descriptor: int) -> bool:
        """Whether the folder still has this file, which the last holder may have removed."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.folder / LOCK))
        except FileNotFoundError:
            return False

    def _note(self, descriptor: int) -> None:
        with suppress(OSError):  # the lock is what counts
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _close_in_fork() -> None:
    """Let go in a child: it may outlive a parent that is killed, as workers of a DataLoader do."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_fork)
