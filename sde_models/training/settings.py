"""The settings of a training run, and its learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PRECISIONS: dict[str | None, torch.dtype | None] = {
    None: None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Settings:
    """What is chosen for a run, beside model, data and loss; as in :func:`~sde_models.fit`.

    Raises:
        ValueError: If a number is out of range, or not exactly one of ``steps`` and ``seconds``
            is given.
    """

    steps: int | None
    seconds: float | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    averaging: float
    warmup: int
    clip_norm: float
    mixed_precision: str | None
    accumulate: int
    checkpoint_every: int
    keep: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep"):
            self._check_whole(name, least=1)
        self._check_whole("warmup", least=0)
        for name in ("seconds", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(
                f"give exactly one of steps and seconds, got steps={self.steps} and "
                f"seconds={self.seconds}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must lie in [0, 1), got {self.averaging}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"mixed_precision must be 'bf16', 'fp16' or None, got {self.mixed_precision!r}"
            )

    def share_done(self, step: int, seconds: float) -> float:
        """Share of the run that is over after so many steps and seconds."""
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        return seconds / self.seconds

    def rate(self, step: int, share: float) -> float:
        """Learning rate of a step: a linear rise, then a cosine to zero at the end."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
