r"""Weightings of the error at each noise level.

Each is a weight w(t) of the squared error of the noise, :math:`w |\hat\epsilon - \epsilon|^2`. For
the score this is :math:`\lambda |\hat s - s|^2` with :math:`\lambda = \sigma^2 w`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive
from sde_models._utils.errors import find_by_name
from sde_models._utils.shapes import per_sample
from sde_models.losses.noising import NoisedBatch
from sde_models.losses.times import log_snr_rate
from sde_models.models.base import Model

SquaredError = Callable[[Model, NoisedBatch, dict[str, Any]], Tensor]
NoiseWeight = Callable[[NoisedBatch], Tensor]


@dataclass(frozen=True)
class Weighting:
    """A squared error, and the times that it is usually averaged over.

    Attributes:
        error: The error of a model, shape ``(B, *event)``.
        times: Name of those times.
        noise_weight: The weight w, shape of ``batch.t``; None where the error is not one of the
            noise.
        divides_by_density: Whether w is divided by the density of the times.
    """

    error: SquaredError
    times: str
    noise_weight: NoiseWeight | None = None
    divides_by_density: bool = False

    def score_weight(self, batch: NoisedBatch) -> Tensor:
        r"""The weight :math:`\lambda = \sigma^2 w` of the error of the score, shape of ``t``.

        Raises:
            ValueError: If there is none.
        """
        if self.noise_weight is None:
            raise ValueError(
                "weighting='output' is an error of the network's output and no function of time: "
                "use 'simple', 'edm', 'min-snr' or 'likelihood'"
            )
        return batch.sde.sigma(batch.t).square() * self.noise_weight(batch.copied())


def noise_weighting(
    noise_weight: NoiseWeight, times: str, divides_by_density: bool = False
) -> Weighting:
    """Make a weighting from a weight of the squared error of the noise.

    Args:
        noise_weight: Function of a :class:`NoisedBatch` that returns the shape of its ``t``.
        times: Name of the times that it is usually averaged over.
        divides_by_density: Whether it is divided by the density of the times.

    Example:
        >>> of_x0 = noise_weighting(lambda batch: torch.exp(-batch.sde.log_snr(batch.t)), "uniform")
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> sm.losses.denoising_score_matching(model, torch.randn(8, 2), weighting=of_x0).shape
        torch.Size([])
    """

    def error(model: Model, batch: NoisedBatch, cond: Mapping[str, Any]) -> Tensor:
        weight = per_sample(noise_weight(batch.copied()), batch.xt)
        return weight * (model.denoise(batch.t, batch.xt, **cond)[1] - batch.noise).square()

    return Weighting(error, times, noise_weight, divides_by_density)


def min_snr(gamma: float = 5.0) -> Weighting:
    r"""The weighting :math:`\min(\mathrm{SNR}, \gamma) |\hat x_0 - x_0|^2`.

    Of the noise it is :math:`w = \min(1, \gamma / \mathrm{SNR})`.

    Args:
        gamma: Signal-to-noise ratio at which the weight stops to rise; positive.

    Raises:
        ValueError: If it is not positive.

    Reference:
        Hang et al. 2023, Efficient diffusion training via Min-SNR weighting strategy,
        arXiv:2303.09556.
    """
    gamma = check_positive("gamma", gamma)
    return noise_weighting(
        lambda batch: (gamma * torch.exp(-batch.sde.log_snr(batch.t))).clamp(max=1), "uniform"
    )


def _likelihood_weight(batch: NoisedBatch) -> Tensor:
    return -0.5 * log_snr_rate(batch.sde, batch.t) * batch.inverse_density


def _edm_weight(batch: NoisedBatch) -> Tensor:
    return 1 + torch.exp(-batch.sde.log_snr(batch.t)) / batch.sde.data_std**2


def _edm_error(model: Model, batch: NoisedBatch, cond: Mapping[str, Any]) -> Tensor:
    # The errors of noise and x0 are as alpha to sigma; dividing by neither avoids cancellation.
    x0, eps = model.denoise(batch.t, batch.xt, **cond)
    of_x0 = (x0 - batch.x0).square() / batch.sde.data_std**2
    return of_x0 + (eps - batch.noise).square()


def _output_error(model: Model, batch: NoisedBatch, cond: Mapping[str, Any]) -> Tensor:
    output = model.output(batch.t, batch.xt, **cond)
    return (output - model.target(batch.t, batch.x0, batch.noise)).square()


WEIGHTINGS: dict[str, Weighting] = {
    "output": Weighting(_output_error, "log-normal"),
    "edm": Weighting(_edm_error, "log-normal", _edm_weight),
    "simple": noise_weighting(lambda batch: torch.ones_like(batch.t), "uniform"),
    "min-snr": min_snr(),
    "likelihood": noise_weighting(_likelihood_weight, "log-snr", divides_by_density=True),
}


def find_weighting(weighting: str | Weighting) -> Weighting:
    """Look up a weighting by name; an object is returned as it is."""
    if isinstance(weighting, str):
        return find_by_name("weighting", weighting, WEIGHTINGS)
    if not isinstance(weighting, Weighting):
        raise TypeError(
            "weighting must be a name, or an object such as sm.losses.noise_weighting makes, got "
            f"{weighting!r}"
        )
    return weighting
