"""The folder of an evaluation: its settings, and one small file for each chunk that is done."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sde_models.evaluation.fingerprints import hash_tensors, list_differences
from sde_models.whole_files import write_whole

Settings = dict[str, str | int | None]


@dataclass(frozen=True)
class ChunkResult:
    """What is known of the samples of one chunk.

    Attributes:
        tensors: Results by name, each of shape ``(B,)``.
        costs: Evaluations by name.
    """

    tensors: dict[str, Tensor]
    costs: dict[str, int]


class Folder:
    """Results on disk, of one evaluation and no other.

    Args:
        path: The folder, made if it is not there.
        settings: What the numbers depend on.

    Raises:
        ValueError: If there are results of other settings.
        OSError: If the folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Settings) -> None:
        self.path = Path(path)
        content = json.dumps(settings, indent=2, sort_keys=True)
        self.digest = hash_tensors({}, content)
        file = self.path / "settings.json"
        if file.is_file() and any(self.path.glob("chunk-*.safetensors")):
            self._check(settings, file)
        else:
            self._write(file, content.encode())

    def read(self, index: int, first: int, last: int) -> ChunkResult | None:
        """Read a chunk; None if it is not there, or is damaged, which is warned of."""
        path = self._file(index)
        if not path.is_file():
            return None
        try:
            return self._read(path, first, last)
        except (SafetensorError, KeyError, ValueError) as error:
            warnings.warn(
                f"{path} is damaged ({error}): samples {first} to {last - 1} are evaluated again",
                RuntimeWarning,
                stacklevel=3,
            )
            return None

    def read_whole(self, index: int, first: int, last: int) -> ChunkResult:
        """Read a chunk that some process has written.

        Raises:
            OSError: If it is not there or is damaged.
        """
        path = self._file(index)
        try:
            return self._read(path, first, last)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OSError(
                f"{path} was written and cannot be read ({error}): all processes must see the same "
                "folder; call again with it to evaluate what is missing"
            ) from error

    def write(self, index: int, first: int, result: ChunkResult) -> None:
        """Write a chunk.

        Raises:
            OSError: If it cannot be written; the others are as they were.
        """
        described = {"settings": self.digest, "first": first, "costs": result.costs}
        metadata = json.dumps(described, sort_keys=True)
        checksum = hash_tensors(result.tensors, metadata)
        content = save(result.tensors, {"sde_models": metadata, "sha256": checksum})
        self._write(self._file(index), content)

    def _read(self, path: Path, first: int, last: int) -> ChunkResult:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != hash_tensors(tensors, metadata["sde_models"]):
            raise ValueError("its checksum does not fit")
        described = json.loads(metadata["sde_models"])
        if described["settings"] != self.digest or described["first"] != first:
            raise ValueError("it was written with other settings")
        if any(value.shape != (last - first,) for value in tensors.values()):
            raise ValueError("it has another number of samples")
        return ChunkResult(tensors, described["costs"])

    def _check(self, settings: Settings, file: Path) -> None:
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({error}), so that nobody knows what the results beside it "
                f"are: choose another folder, or delete {self.path}"
            ) from error
        differing = list_differences(found, settings)
        if differing:
            raise ValueError(
                f"{self.path} holds results of other settings ({'; '.join(differing)}): choose "
                "another folder, or delete this one, or go back to the settings there"
            )

    def _write(self, path: Path, content: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {path} ({error.strerror or error}); the chunks written before are "
                "whole: make room or see to the permissions, and call again with the same folder "
                "to go on",
            ) from error

    def _file(self, index: int) -> Path:
        return self.path / f"chunk-{index:06d}.safetensors"
