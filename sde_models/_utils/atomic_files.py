"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file under a temporary name next to ``path``, renamed when the block has ended well.

    Args:
        path: The file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written; what was there before is as it was.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_writer(f"{folder}/a") as file:
        ...         _ = file.write(b"content")
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['a']
    """
    temporary = temporary_path(path)
    if not temporary.parent.exists():
        raise FileNotFoundError(f"no folder {temporary.parent} to write {Path(path).name} to")
    try:
        with _synced_writer(temporary) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file as :func:`atomic_writer` does."""
    with atomic_writer(path) as file:
        file.write(content)


def write_synced(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file and wait until the disk has it: for folders that are renamed as one."""
    with _synced_writer(path) as file:
        file.write(content)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A new name next to ``path``, hidden and ending in ``.tmp``."""
    path = Path(path)
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


@contextmanager
def _synced_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
