r"""The log-determinant of a flow as a quadrature along paths that are known.

The path does not depend on the divergence, so it is solved alone. In half log-SNR
:math:`\lambda = \log(\alpha/\sigma)` the change of the log-density is

.. math:: \int_{t_{min}}^{t_{max}} \nabla \cdot \dot x\, dt
          = D \log \frac{\alpha_{t_{max}}}{\alpha_{t_{min}}}
          + \int_{\lambda_{t_{max}}}^{\lambda_{t_{min}}}
            \sigma\, \nabla \cdot \hat\epsilon\; d\lambda .

The first term is known. The integrand of the second is a count of dimensions, from 0 to D, that
rises where the data turn into noise. It is evaluated at equally spaced nodes with fresh probes at
each, and summed by the trapezoidal rule with Gregory's corrections at the ends, which for smooth
integrands that level off is as good as a Gauss rule, and whose every other node makes the rule of
half as many: the difference of the two is the error that is told.

References:
    Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule, SIAM Review 56;
    Chen et al. 2018, Neural ordinary differential equations, arXiv:1806.07366.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_models.divergence import Divergence, standard_error
from sde_models.models import Model

GREGORY = (3 / 8, 7 / 6, 23 / 24)
"""Weights at the ends that make the trapezoidal rule exact for cubics."""
CAUTION = 0.1
"""Part of the last but one difference that an error is at least taken to be."""
WINDOW = {"cpu": 2**18}
"""Numbers that go through the network at once; 2**23 on an accelerator."""


def node_times(sde: Any, intervals: int) -> Tensor:
    """Times of the nodes from ``t_min`` to ``t_max``, equally spaced in log-SNR."""
    first, last = sde.log_snr(sde.times([sde.t_min, sde.t_max])).tolist()
    levels = torch.linspace(first, last, intervals + 1, dtype=torch.float64)
    times = sde.t_from_log_snr(sde.times(levels)).detach().to("cpu", torch.float64)
    times[0], times[-1] = sde.t_min, sde.t_max
    return times


def gregory_weights(intervals: int) -> Tensor:
    """Weights of equally spaced nodes on an interval of length 1, shape ``(intervals + 1,)``."""
    weights = torch.full((intervals + 1,), 1 / intervals, dtype=torch.float64)
    ends = torch.tensor(GREGORY, dtype=torch.float64) / intervals
    weights[:3], weights[-3:] = ends, ends.flip(0)
    return weights


@dataclass(frozen=True)
class TraceIntegral:
    """The integral of the divergence along each path.

    Attributes:
        value: The whole change of the log-density, shape ``(B,)``, with a graph if asked for.
        stderr: Its standard error from the probes, shape ``(B,)``; NaN for a single probe.
        error: Difference to the rule on every other node, or a tenth of the next such difference,
            which is not small by chance at the same time; less what the probes explain, ``(B,)``.
    """

    value: Tensor
    stderr: Tensor
    error: Tensor


def integrate_traces(model: Model, estimates: Tensor, size: int, exact: bool) -> TraceIntegral:
    """Integrate the divergence from its estimates at the nodes.

    Args:
        model: The model whose flow it is of.
        estimates: What :func:`traces` gave, shape ``(M, B, n)``.
        size: Number of dimensions D.
        exact: Whether they are free of noise.
    """
    sde: Any = model.sde
    intervals = len(estimates) - 1
    times = sde.times(node_times(sde, intervals))
    length, shrinks = _constants(sde, times, estimates)
    counts = estimates * sde.sigma(times).to(estimates)[:, None, None]
    means, noise = counts.mean(2), None
    fine = gregory_weights(intervals).to(estimates)
    value = length * (fine[:, None] * means).sum(0)
    stderr = torch.zeros_like(value.detach())
    if not exact:
        noise = standard_error(counts.detach().flatten(0, 1)).reshape(means.shape)
        stderr = length.detach() * _root_sum_of_squares(fine, noise)
    changes = [
        _change(fine, intervals, means.detach(), noise),
        CAUTION
        * _change(
            gregory_weights(intervals // 2).to(fine),
            intervals // 2,
            means[::2].detach(),
            None if noise is None else noise[::2],
        ),
    ]
    error = length.detach() * torch.maximum(*changes)
    return TraceIntegral(size * shrinks + value, stderr, error)


def _change(weights: Tensor, intervals: int, means: Tensor, noise: Tensor | None) -> Tensor:
    """Difference to the rule on every other node, less what is explained by the probes."""
    change = weights.clone()
    change[::2] -= gregory_weights(intervals // 2).to(weights)
    difference = (change[:, None] * means).sum(0).abs()
    if noise is None:
        return difference
    return (difference - 2 * _root_sum_of_squares(change, noise).nan_to_num(0.0)).clamp(min=0)


def _root_sum_of_squares(weights: Tensor, noise: Tensor) -> Tensor:
    return (weights[:, None] * noise).square().sum(0).sqrt()


def _constants(sde: Any, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the path in half log-SNR, and the log of what alpha shrinks by, for a dimension."""
    ends = times[[0, -1]]
    start, end = (0.5 * sde.log_snr(ends)).unbind()
    first, last = sde.alpha(ends).log().unbind()
    return (start - end).to(like), (last - first).to(like)


def traces(
    model: Model,
    times: Tensor,
    states: Tensor,
    estimator: Divergence,
    generator: torch.Generator | None,
    cond: dict[str, Any],
) -> Tensor:
    """Estimates of the divergence of eps at each node, shape ``(M, B, probes)``.

    As many nodes as memory allows go through the network as one batch.
    """
    nodes, batch = states.shape[:2]
    most = WINDOW.get(states.device.type, 2**23)
    window = max(1, most // (states[0].numel() * estimator.probes))
    sde: Any = model.sde
    t = sde.times(times).to(states)
    found = []
    for first in range(0, nodes, window):
        part = states[first : first + window]
        count = len(part)
        own = {
            name: value.repeat(count, *(1,) * (value.ndim - 1))
            if isinstance(value, Tensor) and value.ndim and len(value) == batch
            else value
            for name, value in cond.items()
        }
        at = t[first : first + window].repeat_interleave(batch)
        x = part.flatten(0, 1)

        def eps(y: Tensor, at: Tensor = at, own: dict[str, Any] = own) -> Tensor:
            return model.denoise(at, y, **own)[1]

        _, estimates = estimator(eps, x, estimator.draw(x, generator))
        found.append(estimates.unflatten(0, (count, batch)))
    return torch.cat(found)
