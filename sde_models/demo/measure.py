"""The measurements of the demonstration on a trained model, each with its cost."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.standard_errors import standard_error
from sde_models.data import dequantize
from sde_models.likelihood.bits_per_dimension import BitsPerDim, bits_from_log_prob, bits_per_dim
from sde_models.models.base import Model
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.sampling.latents import Decoding, Encoding, decode, encode
from sde_models.sampling.samples import Sample, sample
from sde_models.solvers import make_solver
from sde_models.solvers.options import SolveOptions
from sde_models.training import Fit

SAMPLERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("euler-maruyama", {"steps": 200}),
    ("sde:heun", {"steps": 100}),
    ("ode:rk4", {"steps": 20, "grid": "log-snr"}),
    ("ode:dopri5", {"rtol": 1e-4, "atol": 1e-4}),
    ("scipy:DOP853", {"rtol": 1e-4, "atol": 1e-4}),
)
"""Solvers that are compared, each with its options."""

FINE = "ode:dopri8"
"""Solver of accurate solutions: fewer evaluations than dopri5 at tight tolerances."""


@dataclass(frozen=True)
class SamplerRun:
    """Samples by one solver.

    Attributes:
        solver: Name of the solver.
        settings: Its options.
        stochastic: Whether it ran the reverse SDE; else the probability flow.
        drawn: The samples and their cost.
        seconds: Time taken.
        error: Root mean square distance to an accurate solution from the same noise, in grey
            levels; None for an SDE, which has no single solution.
    """

    solver: str
    settings: dict[str, Any]
    stochastic: bool
    drawn: Sample
    seconds: float
    error: float | None


def compare_samplers(
    model: Model, shape: tuple[int, ...], levels: int, *, seed: int, progress: bool
) -> list[SamplerRun]:
    """Draw samples by every solver of :data:`SAMPLERS`, all from the same noise at ``t_max``."""

    def draw(name: str, settings: dict[str, Any]) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        return sample(model, shape, name, generator=generator, progress=progress, **settings)

    reference = draw(FINE, {"rtol": 1e-6, "atol": 1e-6}).x
    runs = []
    for name, settings in SAMPLERS:
        start = time.perf_counter()
        drawn = draw(name, settings)
        seconds = time.perf_counter() - start
        stochastic = make_solver(name).stochastic
        distance = (drawn.x - reference).square().mean().sqrt() * levels / 2
        error = None if stochastic else float(distance)
        runs.append(SamplerRun(name, settings, stochastic, drawn, seconds, error))
    return runs


@dataclass(frozen=True)
class RoundTrip:
    """Data encoded and decoded again.

    Attributes:
        dtype: Floating dtype, by name.
        tolerance: Relative and absolute tolerance of the solver.
        errors: Largest error in each image, in units of x, shape ``(B,)``.
        there: The solve to the latents.
        back: The solve back to data.
        seconds: Time taken.
    """

    dtype: str
    tolerance: float
    errors: Tensor
    there: Encoding
    back: Decoding
    seconds: float


def round_trip(
    model: Model, x: Tensor, dtype: torch.dtype, tolerance: float, *, progress: bool
) -> RoundTrip:
    """Encode and decode data in one dtype, at one tolerance."""
    model, x = deepcopy(model).to(dtype), x.to(dtype)
    control: SolveOptions = {"rtol": tolerance, "atol": tolerance, "progress": progress}
    start = time.perf_counter()
    there = encode(model, x, FINE, **control)
    back = decode(model, there.z, FINE, **control)
    return RoundTrip(
        dtype=str(dtype).removeprefix("torch."),
        tolerance=tolerance,
        errors=(back.x - x).abs().flatten(1).amax(dim=1),
        there=there,
        back=back,
        seconds=time.perf_counter() - start,
    )


def interpolate(model: Model, first: Tensor, last: Tensor, *, count: int, progress: bool) -> Tensor:
    """Decode ``count`` latents from each of ``first`` to its partner in ``last``, ends included.

    Returns:
        Images, shape ``(P, count, *event)`` for P pairs.
    """
    shares = torch.linspace(0, 1, count, dtype=first.dtype).tolist()
    between = torch.stack([spherical(first, last, share) for share in shares], dim=1)
    images = decode(model, between.flatten(0, 1), rtol=1e-4, atol=1e-4, progress=progress).x
    return images.reshape(between.shape)


def spherical(first: Tensor, last: Tensor, share: float) -> Tensor:
    r"""Interpolate along the great circle, so that norms stay those of Gaussian noise.

    .. math:: \frac{\sin((1 - w)\theta)}{\sin\theta} z_0 + \frac{\sin(w\theta)}{\sin\theta} z_1

    with theta the angle between the first :math:`z_0` and the last :math:`z_1`, which are not
    parallel, and w the share.

    Reference:
        Shoemake 1985, Animating rotation with quaternion curves.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(1), last.flatten(1), dim=1)
    angle = torch.acos(cosine.clamp(-1, 1)).reshape(-1, *(1,) * (first.ndim - 1))
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (weights[0] * first + weights[1] * last) / torch.sin(angle)


@dataclass(frozen=True)
class Density:
    """Bits per dimension of a model and of a Gaussian, on the same dequantised images.

    Attributes:
        model: Those of the model.
        gaussian: Those of the Gaussian for each image, shape ``(B,)``.
        seconds: Time that the model's took.
    """

    model: BitsPerDim
    gaussian: Tensor
    seconds: float

    @property
    def gain(self) -> Tensor:
        """Bits per dimension of the Gaussian minus those of the model, shape ``(B,)``."""
        return self.gaussian - self.model.per_image


def measure_density(
    model: Model,
    images: Tensor,
    train: Tensor,
    levels: int,
    *,
    tolerance: float,
    seed: int,
    progress: bool,
) -> Density:
    """Compute test bits per dimension of the model and of a Gaussian fitted to the training data.

    Both sets of images are levels; the seed is that of the dequantisation.
    """
    start = time.perf_counter()
    bits = bits_per_dim(
        model, images, levels, solver="ode:dopri5", rtol=tolerance, atol=tolerance,
        generator=torch.Generator().manual_seed(seed), progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    x = dequantize(images, levels, generator=torch.Generator().manual_seed(seed))
    log_prob = fit_gaussian(train, levels).log_prob(x.double())
    return Density(bits, bits_from_log_prob(log_prob, x[0].numel(), 2 / levels), seconds)


def fit_gaussian(images: Tensor, levels: int) -> GaussianMixture:
    r"""The Gaussian of largest mean likelihood for dequantised images, on (-1, 1).

    Its mean is that of the centres of the levels, of width w; its covariance theirs plus
    :math:`w^2 / 12`, the variance of the uniform noise, in each coordinate.
    """
    width = 2 / levels
    centres = -1 + width * (images.flatten(1).double() + 0.5)
    noise = width**2 / 12 * torch.eye(centres.shape[1], dtype=centres.dtype)
    covariance = torch.cov(centres.T, correction=0) + noise
    return GaussianMixture(centres.mean(0, keepdim=True), covariances=covariance[None])


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Mean of independent values, and its standard error."""
    return {"value": float(values.mean()), "stderr": float(standard_error(values[None]))}


@dataclass(frozen=True)
class Results:
    """Everything that the demonstration measures.

    Attributes:
        trained: The training run.
        runs: Samples by each solver.
        x: The dequantised test images of the round trips, shape ``(B, 1, 8, 8)``.
        trips: Round trips.
        between: Latents decoded between pairs, shape ``(P, count, 1, 8, 8)``.
        density: Bits per dimension.
    """

    trained: Fit[ScoreModel]
    runs: list[SamplerRun]
    x: Tensor
    trips: list[RoundTrip]
    between: Tensor
    density: Density
