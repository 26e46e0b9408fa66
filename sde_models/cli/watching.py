"""Watching a run: bits per dimension and samples from time to time, and a last picture."""

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
"""Images for testing that bits per dimension are computed on."""

BITS_TOLERANCE = 1.0
"""Error of each image that is asked for there, in nats."""

POINTS = 2000
"""How many points the picture of the samples shows, where they are points."""

QUICK: dict[str, Any] = {"solver": "dpmpp-2m", "steps": 30, "progress": False}
"""How the samples of that picture are drawn."""


def watch_bits(
    data: TrainingData, every: int | None, labels: bool, seed: int
) -> list[BitsPerDimCurve]:
    """What computes bits per dimension now and then, if that is asked for."""
    if every is None:
        return []
    if data.levels is None:
        raise ValueError(
            "--bits-every: the data have no levels, and so no bits: give --levels, or leave it out"
        )
    images, label = data.held_out(HELD_OUT)
    cond = {"label": label} if labels else {}
    return [BitsPerDimCurve(every, images, data.levels, seed=seed, tol=BITS_TOLERANCE, **cond)]


def watch_samples(
    model: ScoreModel, every: int | None, folder: Path, seed: int
) -> list[SampleImages]:
    """What draws samples now and then, if that is asked for."""
    if every is None:
        return []
    images: Any = model.event_shape
    return [
        SampleImages(every, images, folder, count=IMAGES, seed=seed, **each_class(model, IMAGES))
    ]


def each_class(model: ScoreModel, count: int) -> dict[str, Any]:
    """One class after the other as conditioning, for a model with classes."""
    classes = getattr(model.network, "classes", None)
    return {} if classes is None else {"label": torch.arange(count) % classes}


def draw_samples(model: ScoreModel, seed: int) -> bytes:
    """A picture of samples."""
    assert model.event_shape is not None
    count = min(POINTS, check_drawable(model.event_shape))
    generator = torch.Generator().manual_seed(seed)
    cond = each_class(model, count)
    shape = (count, *model.event_shape)
    drawn = sample(model, shape, generator=generator, **QUICK, **cond).x
    return draw(drawn, data_range=model.data_range)
