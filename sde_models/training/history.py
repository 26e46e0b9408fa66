"""The losses of a run, read from the device only now and then."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_SKIPPED = 50
"""Steps in a row with infinite gradients, each of which halves a scale that begins at 2^16."""


class History:
    """Losses so far, and those that are still on the device.

    Args:
        losses: Those of the earlier part of a resumed run.
        learning_rate: For the error message.
        scaled: Whether gradients are scaled, and steps with infinite ones left out.

    Attributes:
        losses: Losses that have been read.
        norm: Norm of the gradient of the last step that was read.
        stop: Whether a process has received a signal to stop.
    """

    def __init__(self, losses: list[float], learning_rate: float, scaled: bool) -> None:
        self.losses = losses
        self.norm = math.nan
        self.stop = False
        self.learning_rate = learning_rate
        self.scaled = scaled
        self.skipped = 0
        self._waiting: list[Tensor] = []

    @property
    def step(self) -> int:
        """Steps whose loss was computed."""
        return len(self.losses) + len(self._waiting)

    def add(self, watched: Tensor) -> None:
        """Add the loss, the norm of the gradient and the number of processes to stop, ``(3,)``."""
        self._waiting.append(watched)

    def read(self) -> None:
        """Wait for the device, and read the losses.

        Raises:
            FloatingPointError: If a loss or gradient is not finite, naming the step.
        """
        if not self._waiting:
            return
        rows = torch.stack(self._waiting).tolist()
        self._waiting = []
        for loss, norm, stop in rows:
            self.losses.append(loss)
            self.norm = norm
            self.stop = self.stop or stop > 0
            if not math.isfinite(loss):
                self._refuse(f"the loss is {loss}")
            self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
            if self.skipped > (MOST_SKIPPED if self.scaled else 0):
                self._refuse(f"the gradient has the norm {norm}")

    def _refuse(self, what: str) -> None:
        raise FloatingPointError(
            f"{what} at step {len(self.losses)}: look at the data, or lower "
            f"learning_rate={self.learning_rate:g}"
        )
