"""Training a score model: one loop with averaged weights.

The optimiser moves the weights of the model it is given. Their exponential moving average lives in
a model of its own from the first step to the last, so the two are never mixed up.

Reference:
    Song et al. 2021, appendix G, arXiv:2011.13456, and Karras et al. 2022, arXiv:2206.00364, on
    sampling with averaged weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from sde_models._shapes import check_batch
from sde_models.losses import denoising_score_matching
from sde_models.models import Model

AnyModel = TypeVar("AnyModel", bound=Model)

Batch = Tensor | tuple[Tensor, dict[str, Any]]
"""Data, shape ``(B, *event)``, alone or with conditioning keywords for the network."""


class BatchSource(Protocol):
    """Draws a batch; all its randomness comes from the generator."""

    def __call__(self, batch_size: int, generator: torch.Generator | None) -> Batch:
        """Draw ``batch_size`` samples."""


class Loss(Protocol):
    """A scalar to be minimised, such as :func:`~sde_models.losses.denoising_score_matching`."""

    def __call__(
        self, model: Any, x0: Tensor, *, generator: torch.Generator | None, **cond: Any
    ) -> Tensor:
        """Loss of one batch."""


@dataclass(frozen=True)
class Progress:
    """Where a training run is, as a callback sees it.

    Attributes:
        step: Steps done.
        loss: Loss of the last step.
        seconds: Time since the start.
        model: The model being trained, with raw weights.
        averaged: The model with averaged weights, in evaluation mode.
    """

    step: int
    loss: float
    seconds: float
    model: Model
    averaged: Model


@dataclass(frozen=True)
class Fit(Generic[AnyModel]):
    """A trained model and how it got there.

    Attributes:
        model: A model of its own with the averaged weights, in evaluation mode.
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


def fit(
    model: AnyModel,
    data: Tensor | BatchSource,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    averaging: float = 0.995,
    warmup: int = 100,
    clip_norm: float = 1.0,
    loss: Loss = denoising_score_matching,
    generator: torch.Generator | None = None,
    progress: bool = True,
    callback: Callable[[Progress], None] | None = None,
) -> Fit[AnyModel]:
    r"""Train a model with AdamW, and average its weights on the way.

    The learning rate rises linearly over ``warmup`` steps and falls to zero along a cosine. The
    averaged weights follow :math:`\bar\theta \leftarrow d \bar\theta + (1 - d) \theta`.

    Args:
        model: What is trained, in place: it ends with the raw weights.
        data: All data, shape ``(N, *event)``, drawn from with replacement; or a function
            ``(batch_size, generator)`` that draws a batch ``x0``, or ``x0`` and a dictionary of
            conditioning keywords.
        steps: Number of steps. Then the result depends on the generator alone.
        seconds: Time to train for, in place of ``steps``.
        batch_size: Samples in each step.
        learning_rate: Highest learning rate.
        weight_decay: Decoupled weight decay.
        averaging: Decay d of the moving average, for each step.
        warmup: Steps until the highest learning rate.
        clip_norm: Largest norm of the gradient; a longer one is shortened to it.
        loss: What is minimised, called as ``loss(model, x0, generator=generator, **cond)``.
        generator: Source of data order, times and noise; torch's global one if None.
        progress: Show a progress bar with loss and steps per second.
        callback: Called after each step.

    Raises:
        ValueError: If not exactly one of ``steps`` and ``seconds`` is given, a setting is out of
            range, or the data are NaN.
        TypeError: If the data are not floating.
        FloatingPointError: If the loss is no longer finite, naming the step.

    Example:
        >>> model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
        >>> result = fit(model, torch.randn(100, 2), steps=5, progress=False)
        >>> result.losses.shape
        torch.Size([5])
    """
    _check_whole({"steps": steps, "batch_size": batch_size}, least=1)
    _check_whole({"warmup": warmup}, least=0)
    _check_positive(seconds=seconds, learning_rate=learning_rate, clip_norm=clip_norm)
    if (steps is None) == (seconds is None):
        raise ValueError(f"give exactly one of steps and seconds, got {steps=} and {seconds=}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    if not 0 <= averaging < 1:
        raise ValueError(f"averaging must lie in [0, 1), got {averaging}")
    draw = _with_replacement(data) if isinstance(data, Tensor) else data
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(averaging))
    averaged = cast(AnyModel, average.module).eval()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
    )
    model.train()
    losses: list[float] = []
    start = time.perf_counter()
    with tqdm(total=steps, desc="training", unit=" steps", disable=not progress) as bar:
        while (done := _share_done(len(losses), start, steps, seconds)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _schedule(len(losses), done, warmup)
            batch = draw(batch_size, generator)
            x0, cond = batch if isinstance(batch, tuple) else (batch, {})
            value = loss(model, x0, generator=generator, **cond)
            optimiser.zero_grad()
            value.backward()
            clip_grad_norm_(model.parameters(), clip_norm)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} at step {len(losses)}: look at the data, or lower "
                    f"learning_rate={learning_rate:g}"
                )
            optimiser.step()
            average.update_parameters(model)
            bar.update()
            if len(losses) % 20 == 0:
                bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}")
            if callback is not None:
                elapsed = time.perf_counter() - start
                callback(Progress(len(losses), losses[-1], elapsed, model, averaged))
    return Fit(
        model=averaged,
        losses=torch.tensor(losses, dtype=torch.float64),
        seconds=time.perf_counter() - start,
    )


def _with_replacement(data: Tensor) -> BatchSource:
    check_batch(data, name="data")

    def draw(batch_size: int, generator: torch.Generator | None) -> Tensor:
        drawn_on = data.device if generator is None else generator.device
        rows = torch.randint(len(data), (batch_size,), generator=generator, device=drawn_on)
        return data[rows.to(data.device)]

    return draw


def _share_done(step: int, start: float, steps: int | None, seconds: float | None) -> float:
    if steps is not None:
        return step / steps
    assert seconds is not None
    return (time.perf_counter() - start) / seconds


def _schedule(step: int, done: float, warmup: int) -> float:
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * done))


def _check_whole(settings: dict[str, int | None], least: int) -> None:
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
