"""The progress of a training run for callbacks, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from sde_models.models.base import Model
from sde_models.training.logs import Log

AnyModel = TypeVar("AnyModel", bound=Model)


@dataclass(frozen=True)
class Progress:
    """State of a training run, the argument of a callback.

    Attributes:
        step: Steps done.
        value: Loss of the last step as a tensor, on the device of the model.
        seconds: Time since the start, earlier parts of a resumed run included.
        model: The model being trained, with raw weights.
        averaged: The model with averaged weights, in evaluation mode.
        log: The log; it drops everything if the run has no ``log_dir``.
        main: Whether this is the first of the processes, the one that writes.
    """

    step: int
    value: Tensor
    seconds: float
    model: Model
    averaged: Model
    log: Log
    main: bool

    @property
    def loss(self) -> float:
        """Loss of the last step. On an accelerator, reading it waits for the device."""
        return float(self.value)


Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Fit(Generic[AnyModel]):
    """A trained model, with the losses of its run.

    Attributes:
        model: A separate model with the averaged weights, in evaluation mode.
        losses: Loss at each step, shape ``(steps,)``, float64.
        seconds: Time that training took.
    """

    model: AnyModel
    losses: Tensor
    seconds: float

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self.losses)

    def summary(self) -> dict[str, float]:
        """The run in numbers, for a file of JSON; its last loss is the mean of the last 100."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps / self.seconds,
            "last_loss": float(self.losses[-100:].mean()),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
