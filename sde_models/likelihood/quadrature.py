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
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import Conditions, copied
from sde_models._utils.randomness import Source, of_some_rows
from sde_models._utils.shapes import time_precision
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import MOST_NUMBERS, Divergence
from sde_models.likelihood.nodes import Nodes
from sde_models.models.base import Model

STUDENT = 1.2
"""The 97.5% quantile of Student's t is near 2 (1 + 1.2 / n) for n degrees of freedom."""
FALL, LEAST = 30.0, 0.1
"""A spectrum that falls by a factor r from one third to the next reduces P to FALL r P, and to no
less than LEAST P. Measured on trained, random and exact networks; see benchmarks/calibration.py."""


END = 1.0
"""Factor on what the last order of the corrections changes, at an end, which the window hides."""


@dataclass(frozen=True)
class Traces:
    """Estimates of the divergence of eps at nodes along the paths of samples.

    Attributes:
        value: Their means less the isotropic part, times sigma, shape ``(M, B)``, with a graph if
            asked for.
        stderr: Standard errors, shape ``(M, B)``; 0 if exact.
        products: Number of vector-Jacobian products of each, shape ``(M, B)``; 0 where unknown.
        unit: Variance of an estimate from one product, shape ``(M, B)``.
        exact: Where there is no error, shape ``(M, B)``.
    """

    value: Tensor
    stderr: Tensor
    products: Tensor
    unit: Tensor
    exact: Tensor

    @classmethod
    def none(cls, states: Tensor) -> Traces:
        """Without any product yet, for states ``(M, B, *event)``."""
        zeros = states.detach().new_zeros(states.shape[:2], dtype=time_precision(states))
        return cls(zeros, zeros, zeros, zeros, zeros > 0)

    def at(self, pairs: Any) -> Traces:
        """Those at some nodes, and of some samples."""
        return Traces(*(getattr(self, field.name)[pairs] for field in fields(self)))

    def reshaped(self, shape: Sequence[int]) -> Traces:
        """In another shape."""
        return Traces(*(getattr(self, field.name).reshape(shape) for field in fields(self)))

    def replaced(self, pairs: tuple[Tensor, ...], others: Traces) -> Traces:
        """With others at these places."""
        return Traces(
            *(
                getattr(self, field.name).index_put(pairs, getattr(others, field.name))
                for field in fields(self)
            )
        )

    def spread(self, nodes: Nodes, factor: int) -> Traces:
        """In their places among finer nodes, with zeros elsewhere."""
        return Traces(*(nodes.spread(getattr(self, f.name), factor) for f in fields(self)))

    def smoothed(self, length: float = math.inf) -> Traces:
        """With standard errors by the variances of each node and its neighbours.

        Those of its own few probes are small where these are small by luck.

        Args:
            length: Number of probes without replacement that give the trace exactly.
        """
        unit = 0.5 * (self.unit + neighbours(self.unit))
        left = (1 - (self.products - 1) / (length - 1)).clamp(min=0)
        stderr = (unit / self.products.clamp(min=1) * left).sqrt()
        return replace(self, stderr=stderr.masked_fill(self.exact, 0))

    def pooled(self, others: Traces) -> Traces:
        """Means with independent estimates of the same, by their numbers of products."""
        total = self.products + others.products
        own, other = self.products / total, others.products / total
        return Traces(
            own * self.value + other * others.value,
            ((own * self.stderr).square() + (other * others.stderr).square()).sqrt(),
            total,
            torch.where(self.products > 0, own * self.unit + other * others.unit, others.unit),
            others.exact,
        )


def neighbours(values: Tensor) -> Tensor:
    """Means of the two neighbours of each node, shape ``(M, B)``; of one at the ends, twice."""
    padded = torch.cat([values[1:2], values, values[-2:-1]])
    return 0.5 * (padded[:-2] + padded[2:])


@dataclass(frozen=True)
class TraceIntegral:
    """The integral of the divergence along each path.

    Attributes:
        value: The total change of the log-density, shape ``(B,)``, with a graph if asked for.
        stderr: Its standard error from the probes, shape ``(B,)``.
        error: Error of the quadrature at 95%, shape ``(B,)``.
        total: Variance of the integral by its spectrum, shape ``(B,)``.
    """

    value: Tensor
    stderr: Tensor
    error: Tensor
    total: Tensor


@dataclass(frozen=True)
class Probes:
    """Probes that are drawn already, shape ``(k, n, *event)`` for n points."""

    drawn: Tensor


def estimate_traces(
    model: Model,
    t: Tensor,
    x: Tensor,
    estimator: Divergence,
    source: Source | Probes,
    cond: Conditions,
) -> Traces:
    r"""Estimate the integrand f at points, with probes for each; fields of shape ``(n,)``.

    As many points as memory allows go through the network as one batch.

    Args:
        model: The model whose eps it is.
        t: Times as the SDE makes them, shape ``(n,)``.
        x: Points, shape ``(n, *event)``.
        estimator: Trace estimator.
        source: Source of the probes, where a sequence has a generator for each point; or probes
            that are drawn already.
        cond: Conditions of the points.
    """
    sde: Any = model.sde
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    isotropic = (sigma / ((alpha * sde.data_std).square() + sigma.square())).detach().to(x)
    size = x[0].numel()
    window = max(1, MOST_NUMBERS // (size * estimator.probes))
    window = window if cond.repeatable else 1
    found = []
    for rows in torch.arange(len(x), device=x.device).split(window):
        own = cond.take(rows)
        at, part = t[rows].to(x), x[rows]

        def eps(y: Tensor, at: Tensor = at, own: Conditions = own) -> Tensor:
            return model.denoise(at.clone(), y, **copied(own))[1]

        probes: Tensor | None
        if isinstance(source, Probes):
            probes = source.drawn[:, rows].to(x.dtype)
        else:
            probes = draw_rows(estimator.draw, part.clone(), of_some_rows(source, rows), dim=1)
        found.append(estimator(eps, part, probes, isotropic[rows])[1])
    scale = sigma.detach().to(x.device, time_precision(x))
    value = torch.cat([trace.value for trace in found]).to(scale) - size * isotropic.to(scale)
    stderr = torch.cat([trace.stderr for trace in found]).to(scale)
    products = torch.full_like(stderr, estimator.count_products(size))
    stderr = scale * stderr
    exact = torch.full_like(stderr, estimator.exact, dtype=torch.bool)
    return Traces(scale * value, stderr, products, stderr.square() * products, exact)


def integrate_traces(nodes: Nodes, found: Traces, size: int) -> TraceIntegral:
    """Integrate the divergence from its estimates at the nodes.

    Args:
        nodes: The nodes.
        found: The estimates at all of them.
        size: Number of dimensions D.
    """
    weights = nodes.weights.to(found.value)
    value = size * known_part(nodes) + (weights * found.value).sum(0)
    probes = (weights * found.stderr).square().sum(0)
    total, degrees = spectral_variance(nodes, found.value.detach())
    error = 2 * (1 + STUDENT / degrees) * (total - probes).clamp(min=0).sqrt()
    ends = [(part.to(found.value) * found.value.detach()).sum(0) for part in nodes.end_weights]
    return TraceIntegral(
        value,
        probes.sqrt(),
        torch.linalg.vector_norm(torch.stack([error, *(END * end for end in ends)]), dim=0),
        total,
    )


def spectral_variance(nodes: Nodes, values: Tensor) -> tuple[Tensor, int]:
    """Variance of the integral of values ``(M, B)``, shape ``(B,)``, and its degrees of freedom."""
    rates, window = nodes.rates.to(values), nodes.window.to(values)
    weights, count = nodes.weights.to(values) / rates, nodes.count
    power = torch.fft.fft(window * rates * values, dim=0).abs().square()
    upper, middle = math.ceil(count / 3), math.ceil(count / 6)
    high, mid = power[upper : count - upper + 1].mean(0), power[middle:upper].mean(0)
    fall = (FALL * high / mid.clamp(min=torch.finfo(values.dtype).tiny)).clamp(LEAST, 1)
    variance = high * fall * weights.square().sum(0) / window.square().sum(0)
    return variance, count - 2 * upper + 1


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
