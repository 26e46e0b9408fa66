r"""The standard normal on an interval [a, b]: its probability there, and its quantiles.

Both are accurate in the tails, where probabilities underflow, and on intervals so short that their
difference cancels. On a short interval of length h and middle m the density is an exponential,

.. math:: \phi(m + s) = \phi(m)\,e^{-m s}\,(1 + O(h^2)),

which is used where :math:`h < 10^{-5}`; elsewhere probabilities are logarithms, each of the nearer
tail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr, ndtri

SHORT = 1e-5
"""Length below which h²/8 is smaller than the rounding error of a difference of probabilities."""

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


def log_mass(a: Tensor, b: Tensor) -> Tensor:
    r"""Log-probability of an interval, :math:`\log(\Phi(b) - \Phi(a))`, for a < b.

    Args:
        a: Lower ends, float64.
        b: Upper ends, of the same shape.

    Example:
        >>> a = torch.tensor([-1.0, 9.0, 2.0], dtype=torch.float64)
        >>> log_mass(a, a + torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64))
        tensor([ -0.3817, -43.6282, -23.6422], dtype=torch.float64)
    """
    left = a + b <= 0  # mirrored where it is not, so that both tails are small
    low, high = torch.where(left, a, -b), torch.where(left, b, -a)
    log_high = log_ndtr(high)
    general = log_high + (-torch.expm1(log_ndtr(low) - log_high)).log()
    middle, length = (a + b) / 2, b - a
    tilt = (middle * length).abs()
    # log of sinh(tilt / 2) / (tilt / 2), without its overflow
    bend = tilt / 2 + (-torch.expm1(-tilt) / tilt.clamp_min(1e-300)).log()
    bend = torch.where(tilt < SHORT, tilt.square() / 24, bend)
    short = length.log() - middle.square() / 2 - LOG_ROOT_TWO_PI + bend
    return torch.where(length < SHORT, short, general)


def quantile(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Place in [0, 1] of the u-quantile between a and b, by the inverse of the distribution.

    Args:
        a: Lower ends, float64.
        b: Upper ends, of the same shape.
        u: Uniform numbers in [0, 1), likewise.

    Example:
        >>> a = torch.tensor([-1.0, 40.0, 2.0], dtype=torch.float64)
        >>> b = a + torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64)
        >>> quantile(a, b, torch.full_like(a, 0.5))
        tensor([0.5000, 0.0173, 0.5000], dtype=torch.float64)
    """
    log_all, length = log_mass(a, b), b - a
    below = torch.logaddexp(log_ndtr(a), u.log() + log_all)
    above = torch.logaddexp(log_ndtr(-b), torch.log1p(-u) + log_all)
    point = log_ndtri(torch.minimum(below, above)) * torch.where(below <= above, 1.0, -1.0)
    tilt = (a + b) / 2 * length
    small = tilt.abs() < SHORT
    safe = torch.where(small, 1.0, tilt)
    # From the end where the density is larger, so that no exponential overflows.
    share = torch.where(tilt > 0, u, 1 - u)
    place = -torch.log1p(share * torch.expm1(-safe.abs())) / safe.abs()
    place = torch.where(tilt > 0, place, 1 - place)
    place = torch.where(small, u - tilt * u * (1 - u) / 2, place)
    return torch.where(length < SHORT, place, (point - a) / length).clamp(0, 1)


def log_ndtri(log_p: Tensor) -> Tensor:
    r"""The x with :math:`\log \Phi(x)` = ``log_p``, for probabilities of a half or less.

    Newton's method on :math:`\log \Phi`, whose slope is :math:`\phi / \Phi`.
    """
    far = torch.sqrt(-2 * log_p.clamp_max(-1.0))
    x = torch.where(log_p > -700, ndtri(log_p.exp()), -far).clamp_max(0)
    for _ in range(4):
        ratio = math.sqrt(math.pi / 2) * erfcx(-x / math.sqrt(2))
        x = (x - (log_ndtr(x) - log_p) * ratio).clamp_max(0)
    return x
