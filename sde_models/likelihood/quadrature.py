r"""The log-determinant of a flow as a quadrature along paths that are known.

The path does not depend on the divergence, so it is solved first. In half log-SNR
:math:`\lambda = \log(\alpha/\sigma)` the change of the log-density is

.. math:: \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x\, dt
          = D \log \frac{\alpha_{t_{max}}}{\alpha_{t_{min}}}
          + \int_{\lambda_{t_{max}}}^{\lambda_{t_{min}}}
            \sigma\, \nabla \cdot \hat\epsilon\; d\lambda .

The first term is known, and so is the part of the second that Gaussian data of the same spread
have, :math:`\sigma\, \nabla \cdot \hat\epsilon = D / (1 + s^2 e^{2 \lambda})`. The rest f is
evaluated at the random nodes of :class:`~sde_models.likelihood.nodes.Nodes`, with fresh probes at
each.

The error is read from the spectrum of f at the nodes. Independent errors of the nodes, such as
those of probes, have a flat one, and its power is the variance of the mean of f, however they are
distributed. Oscillations that the nodes do not resolve are folded into it. So the mean power P of
the upper third of the frequencies is the variance of the integral, or more where the spectrum still
falls: then the error is that of frequencies beyond, and P is reduced by the fall below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_models._utils.fields import Fields
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.traces import Traces

STUDENT = 1.2
"""The 97.5% quantile of Student's t is near 2 (1 + 1.2 / n) for n degrees of freedom."""
FALL, LATEST, LEAST = 10.0, 3.0, 0.1
"""A spectrum that falls by a factor r from one third to the next, and by r' within the last one,
reduces P to the larger of FALL r P and LATEST r'^1.5 P, and to no less than LEAST P: the first
alone would overlook a flat rest below a steep peak. Measured on trained, random and exact networks;
see benchmarks/calibration.py."""
END = 1.0
"""Factor on what the last order of the corrections changes, at an end, which the window hides."""


@dataclass(frozen=True)
class TraceIntegral(Fields):
    """The integral of the divergence along each path.

    Attributes:
        value: The total change of the log-density, shape ``(B,)``, with a graph if asked for.
        stderr: Its standard error from the probes, shape ``(B,)``.
        error: Error of the quadrature at 95%, shape ``(B,)``.
    """

    value: Tensor
    stderr: Tensor
    error: Tensor


def integrate_traces(nodes: Nodes, found: Traces, size: int, chance: float = 0.0) -> TraceIntegral:
    """Integrate the divergence from its estimates at the nodes.

    Args:
        nodes: The nodes.
        found: The estimates at all of them.
        size: Number of dimensions D.
        chance: Standard deviations by which the spectrum has to exceed the variance of the probes
            to show more than these.
    """
    weights, detached = nodes.weights.to(found.value), found.value.detach()
    value = size * known_part(nodes) + (weights * found.value).sum(0)
    probes = (weights * found.stderr).square().sum(0)
    total, degrees = spectral_variance(nodes, detached)
    beyond = total - (1 + chance * math.sqrt(2 / degrees)) * probes
    error = 2 * (1 + STUDENT / degrees) * beyond.clamp(min=0).sqrt()
    return TraceIntegral(
        value, probes.sqrt(), torch.hypot(error, END * _end_error(nodes, detached))
    )


def _end_error(nodes: Nodes, values: Tensor) -> Tensor:
    """What the last order of the corrections changes at both ends, shape ``(B,)``."""
    ends = [(part.to(values) * values).sum(0) for part in nodes.end_weights]
    return torch.linalg.vector_norm(torch.stack(ends), dim=0)


def spectral_variance(nodes: Nodes, values: Tensor) -> tuple[Tensor, int]:
    """Variance of the integral of values ``(M, B)``, shape ``(B,)``, and its degrees of freedom."""
    rates, window = nodes.rates.to(values), nodes.window.to(values)
    weights, count = nodes.weights.to(values) / rates, nodes.count
    power = torch.fft.fft(window * rates * values, dim=0).abs().square()
    middle, upper, last = (math.ceil(part * count / 12) for part in (2, 4, 5))
    high, latest = (power[first : count - first + 1].mean(0) for first in (upper, last))
    mid, early = power[middle:upper].mean(0), power[upper:last].mean(0)
    fall = torch.maximum(FALL * _ratio(high, mid), LATEST * _ratio(latest, early).pow(1.5))
    fall = fall.clamp(LEAST, 1)
    variance = high * fall * weights.square().sum(0) / window.square().sum(0)
    return variance, count - 2 * upper + 1


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    return one / other.clamp(min=torch.finfo(other.dtype).tiny)


def known_part(nodes: Nodes) -> float:
    """The change of the log-density for each dimension of Gaussian data of the same spread."""
    sde = nodes.sde
    ends = sde.times([sde.t_min, sde.t_max])
    first, last = sde.alpha(ends).log().tolist()
    spread = 2 * math.log(sde.data_std)
    # The integral of 1 / (1 + s^2 e^(2 l)).
    data, noise = (
        level - 0.5 * math.log1p(math.exp(-abs(2 * level + spread)))
        - max(0.0, level + 0.5 * spread)
        for level in nodes.ends
    )  # fmt: skip
    return float(last - first + data - noise)
