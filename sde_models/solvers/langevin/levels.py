r"""Noise levels and step of annealed Langevin dynamics, from the data and their dimension.

The functions give the largest level, the ratio of neighbouring levels, the levels, and the step.
:func:`~sde_models.times_of_sigmas` gives the times at which an SDE has these levels.

Reference:
    Song and Ermon 2020, Improved techniques for training score-based generative models,
    arXiv:2006.09011.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr, ndtri
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.integers import check_integer
from sde_models._utils.shapes import check_batch


def largest_sigma(data: Tensor, block: int = 1024) -> float:
    r"""The largest distance between two samples, a noise level that connects them all.

    The cost grows with the square of the number of samples; some thousands are enough.

    Args:
        data: Samples, shape ``(N, *event)``.
        block: Samples that are compared at a time, which bounds the memory.

    Raises:
        ValueError: If there are fewer than two different samples.

    Reference:
        Song and Ermon 2020, technique 1.

    Example:
        >>> largest_sigma(torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]]))
        5.0
    """
    check_batch(data, name="data")
    block = check_integer("block", block)
    flat = data.detach().flatten(1)
    flat = flat - flat.mean(0)  # distances of points far from the origin cancel
    blocks = flat.split(block)
    largest = max(float(torch.cdist(a, b).max()) for i, a in enumerate(blocks) for b in blocks[i:])
    if not largest > 0:
        raise ValueError(f"data must hold two different samples or more, got {len(data)} alike")
    return largest


def level_ratio(dim: int, overlap: float = 0.5) -> float:
    r"""The ratio gamma of neighbouring noise levels at which their samples overlap.

    In high dimension D the radius of noise is nearly :math:`N(\sqrt D \sigma, \sigma^2 / 2)`, and
    gamma solves

    .. math:: \Phi(\sqrt{2D}(\gamma - 1) + 3\gamma) - \Phi(\sqrt{2D}(\gamma - 1) - 3\gamma) = C .

    Args:
        dim: Numbers in one sample, D, of 5 or more: in fewer dimensions any two levels overlap.
        overlap: C, the probability that noise of one level lies within three standard deviations
            of the radius of the next. The models of the paper have 0.566.

    Raises:
        ValueError: If ``dim`` is below 5 or ``overlap`` is not within (0, 0.99).

    Reference:
        Song and Ermon 2020, technique 2.

    Example:
        >>> level_ratio(3072)
        1.0398
    """
    dim = check_integer("dim", dim)
    if dim < 5:
        raise ValueError(
            f"dim must be 5 or more, since in fewer dimensions any two levels overlap, got {dim}"
        )
    overlap = as_number("overlap", overlap)
    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap must lie within (0, 0.99), got {overlap!r}")
    root = math.sqrt(2 * dim)

    def excess(ratio: float) -> float:
        middle = root * (ratio - 1)
        return float(ndtr(middle + 3 * ratio) - ndtr(middle - 3 * ratio)) - overlap

    too_far = (root + float(ndtri(1 - overlap)) + 1) / (root - 3)
    return float(brentq(excess, 1.0, too_far, xtol=1e-14))


def geometric_sigmas(largest: float, smallest: float, ratio: float) -> Tensor:
    """Noise levels in geometric progression, falling, as many as their ratio asks for.

    Args:
        largest: First level.
        smallest: Last level.
        ratio: Largest ratio of two neighbours.

    Returns:
        Shape ``(L,)``, float64; the ratio of neighbours is that given or less.

    Raises:
        ValueError: If not ``0 < smallest < largest < inf`` or ``ratio`` is not above 1.

    Example:
        >>> len(geometric_sigmas(50.0, 0.01, level_ratio(3072, overlap=0.566)))
        232
    """
    largest, smallest = as_number("largest", largest), as_number("smallest", smallest)
    if not 0 < smallest < largest < math.inf:
        raise ValueError(
            f"expected 0 < smallest < largest < inf, got smallest={smallest}, largest={largest}"
        )
    ratio = _check_ratio(ratio)
    span = math.log(largest / smallest)
    intervals = math.ceil(span / math.log(ratio) - 1e-9)
    share = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    return largest * torch.exp(-span * share)


def langevin_epsilon(ratio: float, steps_per_level: int) -> float:
    r"""The step at which T Langevin steps best carry noise from one level to the next.

    Noise that had the variance of the level before ends with

    .. math:: \frac{s_T^2}{\sigma_i^2} = (1 - \delta)^{2T} \Big(\gamma^2 - \frac{2}{2 - \delta}\Big)
              + \frac{2}{2 - \delta},

    and :math:`\delta` brings it as close to 1 as possible.

    Args:
        ratio: Ratio gamma of neighbouring levels.
        steps_per_level: T.

    Returns:
        :math:`\delta`, the ``epsilon`` of the solver ``ald``: relative to the variance of the
        noise. In the paper's units it is :math:`\epsilon = \delta \sigma_L^2`.

    Raises:
        ValueError: If ``ratio`` is not above 1 or ``steps_per_level`` not an integer of 1 or more.

    Reference:
        Song and Ermon 2020, proposition 3 and technique 4.

    Example:
        >>> ratio = (50 / 0.01) ** (1 / 231)
        >>> langevin_epsilon(ratio, 5) * 0.01**2  # the paper has 6.2e-6
        6.18e-06
    """
    ratio = _check_ratio(ratio)
    steps = check_integer("steps_per_level", steps_per_level)

    def variance(delta: float) -> float:
        settled = 2 / (2 - delta)
        return (1 - delta) ** (2 * steps) * (ratio**2 - settled) + settled

    return float(minimize_scalar(variance, bounds=(0.0, 1.0), options={"xatol": 1e-9}).x)


def _check_ratio(ratio: float) -> float:
    ratio = as_number("ratio", ratio)
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio of neighbouring levels must be above 1, got {ratio!r}")
    return ratio
