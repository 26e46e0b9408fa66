r"""The log-determinant of a flow as a quadrature along paths that are known.

The path does not depend on the divergence, so it is solved first. In half log-SNR
:math:`\lambda = \log(\alpha/\sigma)` the change of the log-density is

.. math:: \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x\, dt
          = D \log \frac{\alpha_{t_{max}}}{\alpha_{t_{min}}}
          + \int_{\lambda_{t_{max}}}^{\lambda_{t_{min}}}
            \sigma\, \nabla \cdot \hat\epsilon\; d\lambda .

The first term is known. The integrand of the second is a count of dimensions, from 0 to D, that
rises where the data turn into noise. It is evaluated at equally spaced nodes with fresh probes at
each, and summed by the trapezoidal rule with Gregory's corrections at the ends, which for smooth
integrands that level off is as good as a Gauss rule. Every other node gives the same rule with half
as many nodes: the difference of the two is the reported error.

References:
    Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule, SIAM Review 56;
    Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import Conditions, copied
from sde_models._utils.randomness import Source, of_some_rows
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.base import MOST_NUMBERS, Divergence
from sde_models.models.base import Model

GREGORY = (3 / 8, 7 / 6, 23 / 24)
"""Weights at the ends that make the trapezoidal rule exact for cubics."""
STUDENT = 1.2
"""The 97.5% quantile of Student's t is near 2 (1 + 1.2 / n) for n degrees of freedom."""
COARSE_SHARE = 0.1
"""Part of the last but one difference that an error is at least taken to be."""


def node_times(sde: Any, intervals: int) -> Tensor:
    """Times of the nodes from ``t_min`` to ``t_max``, equally spaced in log-SNR."""
    first, last = sde.log_snr(sde.times([sde.t_min, sde.t_max])).tolist()
    levels = torch.linspace(first, last, intervals + 1, dtype=torch.float64)
    times = sde.t_from_log_snr(sde.times(levels)).detach().to("cpu", torch.float64)
    times[0], times[-1] = sde.t_min, sde.t_max
    return times


def gregory_weights(intervals: int) -> Tensor:
    """Weights of equally spaced nodes on an interval of length 1, shape ``(intervals + 1,)``.

    Below five intervals, where the ends would meet, those of the trapezoidal rule.
    """
    weights = torch.full((intervals + 1,), 1 / intervals, dtype=torch.float64)
    if intervals < 5:
        weights[0] = weights[-1] = 0.5 / intervals
        return weights
    ends = torch.tensor(GREGORY, dtype=torch.float64) / intervals
    weights[:3], weights[-3:] = ends, ends.flip(0)
    return weights


@dataclass(frozen=True)
class TraceIntegral:
    """The integral of the divergence along each path.

    Attributes:
        value: The total change of the log-density, shape ``(B,)``, with a graph if asked for.
        stderr: Its standard error from the probes, shape ``(B,)``; two of it hold 95%.
        error: The larger of the difference to the rule on every other node and a tenth of the next
            such difference, since one of them may be small by chance; each less the noise of the
            probes, shape ``(B,)``.
    """

    value: Tensor
    stderr: Tensor
    error: Tensor


@dataclass(frozen=True)
class Traces:
    """Estimates of the divergence of eps at nodes along the paths of samples.

    Attributes:
        value: Their means, shape ``(M, B)``, with a graph if asked for.
        stderr: Standard errors, shape ``(M, B)``; 0 if exact.
        products: Number of vector-Jacobian products of each, shape ``(M, B)``.
        degrees: Number of independent numbers behind each standard error, shape ``(M, B)``.
    """

    value: Tensor
    stderr: Tensor
    products: Tensor
    degrees: Tensor

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


def estimate_traces(
    model: Model,
    t: Tensor,
    x: Tensor,
    estimator: Divergence,
    source: Source,
    cond: Conditions,
) -> Traces:
    r"""Estimate the divergence of eps at points, with probes for each; fields of shape ``(n,)``.

    The divergence for Gaussian data of the same spread,
    :math:`D\,\sigma / (\alpha^2 s^2 + \sigma^2)`, is taken analytically. As many points as memory
    allows go through the network as one batch.

    Args:
        model: The model whose eps it is.
        t: Times as the SDE makes them, shape ``(n,)``.
        x: Points, shape ``(n, *event)``.
        estimator: Trace estimator.
        source: Source of the probes; a sequence has a generator for each point.
        cond: Conditions of the points.
    """
    sde: Any = model.sde
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    isotropic = (sigma / ((alpha * sde.data_std).square() + sigma.square())).detach().to(x)
    window = max(1, MOST_NUMBERS // (x[0].numel() * estimator.probes))
    window = window if cond.repeatable else 1
    found = []
    for rows in torch.arange(len(x), device=x.device).split(window):
        own = cond.take(rows)
        at, part = t[rows].to(x), x[rows]

        def eps(y: Tensor, at: Tensor = at, own: Conditions = own) -> Tensor:
            return model.denoise(at.clone(), y, **copied(own))[1]

        probes = draw_rows(estimator.draw, part.clone(), of_some_rows(source, rows), dim=1)
        found.append(estimator(eps, part, probes, isotropic[rows])[1])
    value = torch.cat([trace.value for trace in found])
    stderr = torch.cat([trace.stderr for trace in found])
    products = torch.full_like(stderr, estimator.count_products(x[0].numel()))
    return Traces(value, stderr, products, torch.full_like(stderr, estimator.degrees))


def node_weights(model: Model, intervals: int, like: Tensor) -> Tensor:
    """Factor of the divergence of eps at each node in the integral, ``(M,)``."""
    sde: Any = model.sde
    times = sde.times(node_times(sde, intervals))
    length, _ = _constants(sde, times, like)
    return length * gregory_weights(intervals).to(like) * sde.sigma(times).to(like)


def integrate_traces(model: Model, found: Traces, size: int) -> TraceIntegral:
    """Integrate the divergence from its estimates at the nodes.

    Args:
        model: The model whose flow it is.
        found: The estimates at all nodes.
        size: Number of dimensions D.
    """
    sde: Any = model.sde
    intervals = len(found.value) - 1
    _, shrinks = _constants(sde, sde.times(node_times(sde, intervals)), found.value)
    weights = node_weights(model, intervals, found.value)
    value = (weights[:, None] * found.value).sum(0)
    stderr = probe_error(weights.detach(), found)
    changes = _change(model, found), COARSE_SHARE * _change(model, found.at(slice(None, None, 2)))
    return TraceIntegral(size * shrinks + value, stderr, torch.maximum(*changes))


def probe_error(weights: Tensor, found: Traces) -> Tensor:
    """Standard error of the integral, enlarged for few probes so that two of it hold 95%.

    The factor is that of Student's t, with the degrees of freedom at the nodes that matter.

    Args:
        weights: Of the nodes, shape ``(M,)``.
        found: The estimates at all nodes.
    """
    variances = (weights[:, None] * found.stderr).square()
    total, squares = variances.sum(0), (variances.square() / found.degrees.clamp(min=1)).sum(0)
    share = squares / total.square().clamp(min=torch.finfo(total.dtype).tiny)
    return total.sqrt() * (1 + STUDENT * share)


def _change(model: Model, found: Traces) -> Tensor:
    """Difference to the rule on every other node, less the noise of the probes."""
    intervals = len(found.value) - 1
    change = node_weights(model, intervals, found.value).detach()
    change[::2] -= node_weights(model, intervals // 2, found.value).detach()
    difference = (change[:, None] * found.value.detach()).sum(0).abs()
    noise = _root_sum_of_squares(change, found.stderr)
    return (difference - noise).clamp(min=0)


def _root_sum_of_squares(weights: Tensor, noise: Tensor) -> Tensor:
    return (weights[:, None] * noise).square().sum(0).sqrt()


def _constants(sde: Any, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the path in half log-SNR, and the change of log alpha along it."""
    ends = times[[0, -1]]
    start, end = (0.5 * sde.log_snr(ends)).unbind()
    first, last = sde.alpha(ends).log().unbind()
    return (start - end).to(like), (last - first).to(like)
