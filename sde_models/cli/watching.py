"""Monitoring of a run: bits per dimension and samples at intervals, and a final picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sde_models.data import TrainingData
from sde_models.data.pictures import IMAGES, check_drawable, draw
from sde_models.models.score_model import ScoreModel
from sde_models.sampling.samples import sample
from sde_models.training import BitsPerDimCurve, SampleImages

HELD_OUT = 64
"""Number of test images for bits per dimension."""

BITS_TOLERANCE = 1.0
"""``tol`` of these bits, in nats for each image."""

POINTS = 2000
"""Number of samples in the picture, where they are points."""


def watch_bits(
    data: TrainingData, every: int | None, labels: bool, seed: int
) -> list[BitsPerDimCurve]:
    """The callback that computes bits per dimension at intervals, if asked for."""
    if every is None:
        return []
    if data.levels is None:
        raise ValueError(
            "--bits-every: bits per dimension need data with levels: give --levels, or leave it out"
        )
    if data.test is None:
        raise ValueError(
            "--bits-every: the data have no part for testing, as files and folders have none: "
            "leave it out, or use a named data set"
        )
    images, label = data.held_out(HELD_OUT)
    cond = {"label": label} if labels else {}
    return [BitsPerDimCurve(every, images, data.levels, seed=seed, cond=cond, tol=BITS_TOLERANCE)]


def watch_samples(
    model: ScoreModel, every: int | None, folder: Path, seed: int
) -> list[SampleImages]:
    """The callback that draws samples at intervals, if asked for."""
    if every is None:
        return []
    images: Any = model.event_shape
    return [
        SampleImages(every, images, folder, count=IMAGES, seed=seed, cond=each_class(model, IMAGES))
    ]


def each_class(model: ScoreModel, count: int) -> dict[str, Any]:
    """One class after the other as a condition, for a model with classes."""
    classes = getattr(model.network, "classes", None)
    return {} if classes is None else {"label": torch.arange(count) % classes}


def draw_samples(model: ScoreModel, seed: int) -> bytes:
    """A picture of samples."""
    assert model.event_shape is not None
    count = min(POINTS, check_drawable(model.event_shape))
    generator = torch.Generator().manual_seed(seed)
    cond = each_class(model, count)
    drawn = sample(
        model, (count, *model.event_shape), "dpmpp-2m", steps=30, cond=cond, generator=generator,
        progress=False,
    )  # fmt: skip
    return draw(drawn.x, data_range=model.data_range)
