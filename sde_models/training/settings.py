"""The settings of a training run, and its learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sde_models._utils.arguments import check_not_negative, check_positive
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
        found: dict[str, Any] = {}
        for name, bound in {**least, "warmup": 0}.items():
            if name != "steps" or self.steps is not None:
                found[name] = check_integer(name, getattr(self, name), bound)
        for name in ("seconds", "learning_rate", "clip_norm"):
            if name != "seconds" or self.seconds is not None:
                found[name] = check_positive(name, getattr(self, name))
        if (self.steps is None) == (self.seconds is None):
            raise ValueError(
                f"give exactly one of steps and seconds, got steps={self.steps} and "
                f"seconds={self.seconds}"
            )
        found["weight_decay"] = check_not_negative("weight_decay", self.weight_decay)
        found["ema_decay"] = check_not_negative("ema_decay", self.ema_decay, below=1)
        for name, value in found.items():
            object.__setattr__(self, name, value)
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
