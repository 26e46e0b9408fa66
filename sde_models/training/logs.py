"""Numbers and images of a run in TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor


class NoLog:
    """Drops everything."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Do nothing."""

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardLog:
    """Writes event files for TensorBoard.

    Args:
        folder: Where to.
        step: First step of this part of the run; later entries of a killed run are hidden.

    Raises:
        ImportError: If TensorBoard is not installed; with the command that installs it.
    """

    def __init__(self, folder: str | os.PathLike[str], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "log_dir= writes for TensorBoard, which is not installed: "
                "pip install 'sde-models[tensorboard]', or leave log_dir out"
            ) from error
        self.writer: Any = SummaryWriter(os.fspath(folder), purge_step=step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write a number."""
        self.writer.add_scalar(name, value, step)

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Write images with values in [0, 1], shape ``(B, C, H, W)``."""
        self.writer.add_images(name, images.detach().cpu(), step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


def open_log(
    folder: str | os.PathLike[str] | None, step: int, main: bool
) -> TensorBoardLog | NoLog:
    """The log of a run: one in the first process if a folder is given, and none otherwise."""
    return NoLog() if folder is None or not main else TensorBoardLog(folder, step)
