"""Samples, latents, and a model's flow as a distribution."""

from sde_models.sampling.adapted_grids import AdaptedGrid, adapt_grid
from sde_models.sampling.distribution import LatentTransform, ScoreDistribution
from sde_models.sampling.latents import Decoding, Encoding, decode, encode
from sde_models.sampling.samples import Sample, sample

__all__ = [
    "AdaptedGrid",
    "Decoding",
    "Encoding",
    "LatentTransform",
    "Sample",
    "ScoreDistribution",
    "adapt_grid",
    "decode",
    "encode",
    "sample",
]
