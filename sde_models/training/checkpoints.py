"""Checkpoints of a run: folders that are written completely or not at all, with checksums.

Each holds the weights and the averaged weights in safetensors, the settings in JSON, and the rest
in a file for ``torch.load(weights_only=True)``. Nothing is ever unpickled. ``SHA256SUMS`` covers
every byte, so that ``sha256sum -c SHA256SUMS`` checks a folder.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.atomic_files import sync_folder, temporary_path, write_synced
from sde_models._utils.owned_folders import OwnedFolder
from sde_models._utils.tensor_files import DamagedError, TensorFile, unpack

SUMS = "SHA256SUMS"
WEIGHTS, AVERAGED, SETTINGS, STATE = (
    "weights.safetensors", "averaged.safetensors", "settings.json", "state.pt",
)  # fmt: skip
FILES = (WEIGHTS, AVERAGED, SETTINGS, STATE)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        weights: Raw weights by name.
        averaged: Averaged weights by name.
        settings: Settings of the run, as text and numbers.
        state: The rest, made of numbers, tensors, lists and dictionaries.
        metadata: Text written with the weights.
    """

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]
    settings: dict[str, Any]
    state: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run, of which the newest few are kept.

    Args:
        path: The folder, made when the first is written.
        keep: Number of checkpoints that are kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     folder = CheckpointFolder(path, keep=2)
        ...     for step in (0, 10, 20):
        ...         folder.write(step, Checkpoint({"a": torch.ones(1)}, {}, {}, {}))
        ...     folder.steps(), folder.read(20).weights["a"]
        ([10, 20], tensor([1.]))
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.path = Path(path)
        self.keep = keep

    @property
    def owned(self) -> OwnedFolder:
        """The folder, to be entered for writing."""
        return OwnedFolder(self.path, "checkpoints")

    def steps(self) -> list[int]:
        """Steps with a checkpoint, readable or not, in rising order."""
        names = (entry.name.removeprefix("step-") for entry in self.path.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"step-{step:08d}"

    def newest(self) -> tuple[int, Checkpoint] | None:
        """The newest checkpoint that is readable, and its step; None if there is no run.

        Raises:
            DamagedError: If there are checkpoints, and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.read(step)
            except DamagedError as error:
                warnings.warn(
                    f"{error}: the checkpoint before it is used instead",
                    RuntimeWarning,
                    stacklevel=2,
                )
        if steps:
            raise DamagedError(
                f"none of the {len(steps)} checkpoints in {self.path} can be read: restore the "
                "folder from a copy, or choose another to start anew"
            )
        return None

    def read(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step.

        Raises:
            DamagedError: If a file is missing or a single bit is not as it was written.
        """
        folder = self.folder(step)
        try:
            content = {name: (folder / name).read_bytes() for name in FILES}
            sums = (folder / SUMS).read_bytes()
        except OSError as error:
            raise DamagedError(f"{folder} is damaged ({error})") from error
        if sums != _checksums(content):
            raise DamagedError(f"{folder} is damaged (its checksums do not fit)")
        try:
            return Checkpoint(
                weights=unpack(content[WEIGHTS]).tensors,
                averaged=unpack(content[AVERAGED]).tensors,
                settings=dict(json.loads(content[SETTINGS])),
                state=dict(torch.load(io.BytesIO(content[STATE]), "cpu", weights_only=True)),
            )
        except Exception as error:  # forged bytes may raise anything
            raise DamagedError(
                f"{folder} is damaged, or was not written by this library: its checksums fit, its "
                f"content does not ({(str(error) or repr(error)).splitlines()[0]})"
            ) from error

    def write(self, step: int, checkpoint: Checkpoint) -> None:
        """Write a checkpoint under a temporary name, rename it, and remove the oldest.

        Raises:
            OSError: If it cannot be written; those written before are as they were.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint.state, buffer)
        content = {
            WEIGHTS: TensorFile(checkpoint.weights, checkpoint.metadata).pack(),
            AVERAGED: TensorFile(checkpoint.averaged, checkpoint.metadata).pack(),
            SETTINGS: json.dumps(checkpoint.settings, indent=2, sort_keys=True).encode(),
            STATE: buffer.getvalue(),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self.folder(step))
        temporary.mkdir()
        try:
            for name, raw in (content | {SUMS: _checksums(content)}).items():
                write_synced(temporary / name, raw)
            sync_folder(temporary)
            self._remove(step)  # of the same step is here only one that could not be read
            os.replace(temporary, self.folder(step))
            sync_folder(self.path)
        finally:
            _delete(temporary)
        for old in self.steps()[: -self.keep]:
            self._remove(old)

    def tidy(self, newest: int) -> None:
        """Remove what a killed run left half-written, and what is damaged after a step."""
        for left in self.path.glob(".step-*.tmp"):
            _delete(left)
        for step in self.steps():
            if step > newest:
                self._remove(step)

    def remove(self) -> None:
        """Remove all checkpoints, and the folder if nothing else is in it."""
        self.tidy(newest=-1)
        self.owned.remove()

    def _remove(self, step: int) -> None:
        # Renamed first, so that there is never an incomplete checkpoint of that name.
        if self.folder(step).exists():
            temporary = temporary_path(self.folder(step))
            os.replace(self.folder(step), temporary)
            _delete(temporary)


def _delete(folder: Path) -> None:
    """Delete a checkpoint, file by file; other files in it are kept under another name."""
    if not os.path.lexists(folder):
        return
    if not folder.is_symlink():
        for name in (*FILES, SUMS):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
            return
    os.replace(folder, folder.with_name(f"kept{folder.name.removesuffix('.tmp')}"))


def _checksums(content: dict[str, bytes]) -> bytes:
    lines = (f"{sha256(content[name]).hexdigest()}  {name}\n" for name in sorted(content))
    return "".join(lines).encode()
