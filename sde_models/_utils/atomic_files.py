"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file under a temporary name beside ``path``, renamed when the block has ended well.

    Args:
        path: The file; one that is there is replaced.

    Raises:
        OSError: If it cannot be written; what was there before is as it was.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open_whole(f"{folder}/a") as file:
        ...         _ = file.write(b"content")
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['a']
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside ``path``, then rename it.

    Args:
        path: The file; one that is there is replaced.
        content: What it will hold.

    Raises:
        OSError: If it cannot be written; what was there before is as it was.
    """
    with open_whole(path) as file:
        file.write(content)
