"""Folders that this library has made: it fills and empties these, and no others.

A file in the folder says so. All other files are somebody else's, whatever they are called.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.folder_locks import FolderLock

MARKER = ".sde-models.json"
MADE_BY = "sde_models"
FORMAT = 1

_OF_MARKERS = re.compile(r"\.+sde-models\.(json|lock)\b.*")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp")


class OwnedFolder(os.PathLike[str]):
    """A folder for one kind of results, with a lock while it is entered.

    Entered, it is made if it is not there, marked and locked. If the block fails before anything
    else was written, a folder that was made for it is gone again.

    Args:
        path: The folder.
        kind: What it is for, such as "shards".
        pattern: Regular expression of the names of the files that are written there, besides those
            that :meth:`note` has noted down.

    Attributes:
        new: Whether it was marked when it was entered.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path, OwnedFolder(path, "shards") as folder:
        ...     folder.write("settings.json", b"{}")
        ...     sorted(name for name in os.listdir(folder) if name != ".sde-models.lock")
        ['.sde-models.json', 'settings.json']
    """

    def __init__(self, path: str | os.PathLike[str], kind: str, pattern: str = r"(?!)") -> None:
        self.path = Path(path)
        self.kind = kind
        self.pattern = re.compile(pattern)
        self._lock = FolderLock(self.path)
        self.new = False
        self._entered = 0
        self._made: list[Path] = []

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def check(self) -> bool:
        """Say whether the folder is marked as ours; False if it is empty or not there.

        Raises:
            FileExistsError: If it is somebody else's, or holds another kind of results.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(
                f"{self.path} cannot be written to: there is a file of that name; choose another "
                "folder"
            )
        marker = self._read()
        if marker is None:
            if self.path.is_dir() and any(not _OF_MARKERS.fullmatch(n) for n in self._names()):
                ours = json.dumps(self._marker([]))
                raise FileExistsError(
                    f"{self.path} is not empty, and no {MARKER} in it says that sde_models made "
                    f"it: choose another folder. If an earlier version made it, write {ours} into "
                    "that file to go on"
                )
            return False
        if marker["kind"] != self.kind or marker["format"] != FORMAT:
            raise FileExistsError(
                f"{self.path} was made for {marker['kind']} (format {marker['format']}), and this "
                f"is for {self.kind} (format {FORMAT}): choose another folder"
            )
        return True

    def __enter__(self) -> Self:
        self._entered += 1
        if self._entered == 1:
            try:
                self._begin()
            except BaseException:
                self._entered = 0
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._entered -= 1
        if self._entered == 0:
            if kind is not None and self.new and self._is_bare():
                (self.path / MARKER).unlink(missing_ok=True)
            self._lock.release()
            for folder in self._made if kind is not None else []:
                _remove_if_empty(folder)

    def check_names(self, *names: str) -> None:
        """Refuse files or folders that are there and were not noted down."""
        for name in names:
            if os.path.lexists(self.path / name) and not self.has(name):
                raise FileExistsError(
                    f"{self.path / name} exists, and was not written here: move it elsewhere, "
                    "or choose another folder"
                )

    def note(self, *names: str) -> None:
        """Note down files or folders before they are written, checked as by :meth:`check_names`."""
        self.check_names(*names)
        known = self._files()
        if new := [name for name in names if name not in known]:
            self._mark([*known, *new])

    def write(self, name: str, content: bytes) -> None:
        """Note a file down and write it."""
        self.note(name)
        atomic_write(self.path / name, content)

    def has(self, name: str) -> bool:
        """Whether a file or folder was noted down."""
        return name in self._files()

    def clear(self) -> None:
        """Delete the files that were written here, and no folder."""
        if self._read() is None:
            return
        files = self._files()
        for name in self._names():
            half = _TEMPORARY.fullmatch(name)
            bare = name if half is None else half["name"]
            file = self.path / name
            ours = bare in files or self.pattern.fullmatch(bare)
            if ours and (file.is_file() or file.is_symlink()):
                file.unlink()
        self._mark([name for name in files if os.path.lexists(self.path / name)])

    def remove(self) -> None:
        """Delete the files that were written here, the marker, and the folder if it is empty."""
        self.clear()
        (self.path / MARKER).unlink(missing_ok=True)
        self._lock.release()
        _remove_if_empty(self.path)

    def _begin(self) -> None:
        self.check()
        self._made = _missing(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path} cannot be written to: {error.strerror}; choose another folder",
            ) from error
        try:
            self._lock.acquire()
            self.new = not self.check()
            if self.new:
                self._mark([])
        except BaseException:
            self._lock.release()
            for folder in self._made:
                _remove_if_empty(folder)
            raise

    def _is_bare(self) -> bool:
        return all(_OF_MARKERS.fullmatch(name) for name in self._names())

    def _names(self) -> list[str]:
        return sorted(os.listdir(self.path)) if self.path.is_dir() else []

    def _files(self) -> list[str]:
        marker = self._read()
        return [] if marker is None else marker["files"]

    def _marker(self, files: list[str]) -> dict[str, Any]:
        return {"made_by": MADE_BY, "kind": self.kind, "format": FORMAT, "files": files}

    def _mark(self, files: list[str]) -> None:
        atomic_write(self.path / MARKER, f"{json.dumps(self._marker(files))}\n".encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            found = dict(json.loads((self.path / MARKER).read_text(encoding="utf-8")))
            if found["made_by"] != MADE_BY:
                return None
            return {"files": [], **found, "kind": found["kind"], "format": found["format"]}
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _missing(path: Path) -> list[Path]:
    """The folders that are not there, from a path upwards."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
