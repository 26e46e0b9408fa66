"""A folder of results: its settings, and a shard, one file, for each chunk of samples."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.counting import EvaluationCounter
from sde_models._utils.owned_folders import OwnedFolder
from sde_models.shards.fingerprints import list_differences
from sde_models.shards.tensor_hashes import hash_tensors

Settings = dict[str, str | int | None]

Found = TypeVar("Found")

SETTINGS = "settings.json"
SHARDS = "chunk-*.safetensors"
PATTERN = r"settings\.json|chunk-\d{6,}\.safetensors"
METADATA = "sde_models"
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Shard:
    """Results of the samples of one chunk.

    Attributes:
        tensors: Results by name, each of shape ``(B, ...)``.
        counter: Evaluations that went into them.
    """

    tensors: dict[str, Tensor]
    counter: EvaluationCounter


def own_shards(path: str | os.PathLike[str]) -> OwnedFolder:
    """The folder of some shards, to be entered; one that is given as an object is returned."""
    return path if isinstance(path, OwnedFolder) else OwnedFolder(path, "shards", PATTERN)


class Folder:
    """Results on disk, all made with the same settings.

    Args:
        path: The folder.
        settings: Everything that the results depend on; among them the numbers ``samples``, of all
            samples, and ``chunk``, of those in a shard.

    Attributes:
        owned: The folder, to be entered for writing.
        samples: Number of samples.
        chunk: Samples in a shard; the last may be smaller.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Settings) -> None:
        self.path = Path(path)
        self.owned = own_shards(path)
        self.content = json.dumps(settings, indent=2, sort_keys=True)
        self.digest = hash_tensors({}, self.content)
        self.samples, self.chunk = int(settings["samples"] or 0), int(settings["chunk"] or 1)

    def check(self) -> None:
        """Refuse shards of other settings.

        Raises:
            ValueError: With the differences.
        """
        file = self.path / SETTINGS
        if not (file.is_file() and any(self.path.glob(SHARDS))):
            return
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}), so that the settings of the results next to it are "
                f"not known: choose another folder, or delete {self.path}"
            ) from error
        differing = list_differences(found, json.loads(self.content))
        if differing:
            raise ValueError(
                f"{self.path} holds results of other settings ({'; '.join(differing)}): go "
                "back to the settings there, or choose another folder, or overwrite=True "
                "(--overwrite) to replace the results there"
            )

    def begin(self, *, overwrite: bool) -> None:
        """Write the settings, before the first shard.

        Args:
            overwrite: Whether to delete the shards that are there.

        Raises:
            OSError: If they cannot be written.
        """
        if overwrite:
            self.owned.clear()
        file = self.path / SETTINGS
        if not (file.is_file() and file.read_bytes() == self.content.encode()):
            self._write(SETTINGS, self.content.encode())

    def check_room(self, size: int) -> int:
        """Bytes that the missing shards take.

        Args:
            size: Bytes of the results of a sample.

        Raises:
            OSError: If there is less free space on the disk.
        """
        there = sum(1 for _ in self.path.glob(SHARDS))
        needed = max(0, self.samples - there * self.chunk) * size
        disk = shutil.disk_usage(self.path)
        if disk.total and needed > disk.free:
            raise OSError(
                errno.ENOSPC,
                f"the results of {self.samples} samples take {in_units(needed)} in {self.path}, "
                f"where {in_units(disk.free)} are free: make fewer samples, or choose a folder on "
                "a larger disk",
            )
        return needed

    def give_up(self) -> None:
        """Remove the settings if there is no shard."""
        if not any(self.path.glob(SHARDS)):
            self.owned.clear()

    def __len__(self) -> int:
        return -(-self.samples // self.chunk)

    def bounds(self, index: int) -> tuple[int, int]:
        """First sample of a shard, and the one after its last."""
        return index * self.chunk, min((index + 1) * self.chunk, self.samples)

    def read(self, index: int) -> Shard | None:
        """Read a shard; None if it is not there, or is damaged, which is warned of."""
        path = self._file(index)
        if not path.is_file():
            return None
        first, last = self.bounds(index)
        try:
            return self._read(path, first, last)
        except (SafetensorError, KeyError, ValueError) as error:
            warnings.warn(
                f"{path} is damaged ({error}): samples {first} to {last - 1} are done again",
                RuntimeWarning,
                stacklevel=3,
            )
            return None

    def read_existing(self, index: int) -> Shard:
        """Read a shard that some process has written.

        Raises:
            OSError: If it is not there or is damaged.
        """
        path = self._file(index)
        try:
            return self._read(path, *self.bounds(index))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OSError(
                f"{path} cannot be read ({error}): give a folder that all processes share; to make "
                "missing or damaged shards again, repeat the call that wrote the others"
            ) from error

    def read_counter(self, index: int) -> EvaluationCounter:
        """Evaluations that went into a shard, from the head of its file; errors as below."""
        return self._read_head(index, lambda head: _read_counter(head["costs"]))

    def read_checksum(self, index: int) -> str:
        """Checksum of the content of a shard, from the head of its file.

        Raises:
            OSError: If it is not there or is damaged.
        """
        return self._read_head(index, lambda head: str(head["sha256"]))

    def _read_head(self, index: int, entry: Callable[[Mapping[str, Any]], Found]) -> Found:
        path = self._file(index)
        try:
            with safe_open(path, framework="pt") as file:
                return entry(json.loads(file.metadata()[METADATA]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"{path} cannot be read ({error}): make it again") from error

    def write(self, index: int, shard: Shard) -> None:
        """Write a shard.

        Raises:
            OSError: If it cannot be written; the others are as they were.
        """
        described = {
            "settings": self.digest, "first": index * self.chunk, "costs": vars(shard.counter),
        }  # fmt: skip
        signed = described | {"sha256": _checksum(shard.tensors, described)}
        # One entry: safetensors puts several in an order that changes from call to call.
        content = save(shard.tensors, {METADATA: json.dumps(signed, sort_keys=True)})
        self._write(self._file(index).name, content)

    def _read(self, path: Path, first: int, last: int) -> Shard:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = dict(json.loads(metadata[METADATA]))
        if described.pop("sha256") != _checksum(tensors, described):
            raise ValueError("its checksum does not fit")
        if described["settings"] != self.digest or described["first"] != first:
            raise ValueError("it was written with other settings")
        if any(len(value) != last - first for value in tensors.values()):
            raise ValueError("it has another number of samples")
        return Shard(tensors, _read_counter(described["costs"]))

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        try:
            atomic_write(path, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {path} ({error.strerror or error}); the shards written before are "
                "complete: make room or change the permissions, and call again with the same "
                "folder to go on",
            ) from error

    def _file(self, index: int) -> Path:
        return self.path / f"chunk-{index:06d}.safetensors"


def _checksum(tensors: Mapping[str, Tensor], described: Mapping[str, object]) -> str:
    return hash_tensors(tensors, json.dumps(described, sort_keys=True))


def _read_counter(costs: Mapping[str, int]) -> EvaluationCounter:
    """The counts in the head of a shard; older ones have calls as ``nfe``, and of two ``vjps``."""
    if "vjp_rows" in costs:
        return EvaluationCounter(costs["nfe"], costs["rows"], costs["vjp_rows"])
    return EvaluationCounter(**costs)


def in_units(size: int) -> str:
    """A number of bytes, to three digits.

    Example:
        >>> in_units(24), in_units(8 * 10**12)
        ('24 bytes', '8 TB')
    """
    power = min((len(str(size)) - 1) // 3, len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"


def remove_shards(path: str | os.PathLike[str]) -> None:
    """Delete the shards and the settings of a folder, and the folder if nothing else is in it.

    Raises:
        FileNotFoundError: If there are no settings.
        FileExistsError: If no marker in it says that this library made it.
        BlockingIOError: If another process is at work in it.
    """
    folder = own_shards(path)
    if not (folder.path / SETTINGS).is_file():
        raise FileNotFoundError(f"no shards in {folder.path}: it has no {SETTINGS}")
    with folder:
        folder.remove()
