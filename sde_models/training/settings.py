"""The settings of a training run, and its learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sde_models._utils.integers import check_integer

PRECISIONS: dict[str | None, torch.dtype | None] = {
    None: None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a run other than model, data and loss; see :func:`~sde_models.fit`.

    Raises:
        ValueError: If a number is out of range, or not exactly one of ``steps`` and ``seconds``
            is given.
    """

    steps: int | None
    seconds: float | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    ema_decay: float
    warmup: int
    clip_norm: float
    mixed_precision: str | None
    gradient_accumulation_steps: int
    checkpoint_every: int
    keep: int

    def __post_init__(self) -> None:
        least = dict.fromkeys(
            ("steps", "batch_size", "gradient_accumulation_steps", "checkpoint_every", "keep"), 1
        )
        for name, bound in {**least, "warmup": 0}.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_integer(name, value, bound))
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
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
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
