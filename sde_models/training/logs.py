"""Numbers and images of a run in TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor


class Log:
    """Writes event files for TensorBoard; without a folder it drops everything.

    Args:
        folder: Where to, if anywhere.
        step: First step of this part of the run; later entries of a killed run are hidden.

    Raises:
        ImportError: If TensorBoard is not installed; with the command that installs it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, step: int) -> None:
        self.writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "log_dir= writes for TensorBoard, which is not installed: "
                "pip install 'sde-models[tensorboard]', or leave log_dir out"
            ) from error
        self.writer = SummaryWriter(os.fspath(folder), purge_step=step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write a number."""
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Write images with values in [0, 1], shape ``(B, C, H, W)``."""
        if self.writer is not None:
            self.writer.add_images(name, images.detach().cpu(), step)

    def close(self) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self.writer.close()
