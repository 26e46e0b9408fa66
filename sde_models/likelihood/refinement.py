r"""The error of a result that was computed at several resolutions.

The result is a sum of parts: the log-density of the latents, and what each node adds. The changes
of the sum, :math:`d_1` from the second finest resolution to the finest and :math:`d_2` before it,
vanish by chance for some samples; the norms :math:`D_1` and :math:`D_2` of the changes of the parts
do not. Refinement contracts by :math:`\rho = D_1 / D_2`.

With numbers of steps that double, what is left is
:math:`\sum_{k \ge 1} \rho^k d_1 = \rho / (1 - \rho)\, d_1`; it is reported with a margin, and no
less than any change. Tolerances that fall by factors of ten leave less than the last change, but by
no fixed factor; parts of the changes are reported. Where the changes grow, so is a multiple of the
last one; and where they grow much, the steps are too large for any statement: the error is not
known, NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_models.solvers import Solver

PARTS, BEFORE = 0.5, 0.1
"""For tolerances: factors on the last change of the parts and on the change before."""
OF_TWO = 2.0
"""Factor on the only change of two results."""
OTHER_UNITS = 3.0
"""Factor on the error of solvers that do not control errors in units of the noise."""
MARGIN, LARGEST = 3.0, 0.75
"""For numbers of steps: the factor on what is left, and the largest ratio in that."""
GROWING, UNKNOWN = 3.0, 5.0
"""The factor on changes that grow, and the growth from which the error is not known. All factors
were measured with networks that are exact scores, trained and random: see
``benchmarks/calibration.py``."""
USUAL = 5.0
"""Usual errors in nats of a path, in units of its tolerance and the root of the dimension."""
SMALL = 0.01
"""Changes below so many nats are small, whatever those before are."""


def least_error(tolerance: float, size: int) -> Tensor:
    """Least error that is reported for a tolerance in units of the noise and D dimensions, scalar.

    That much is usual, where all changes are small by chance.
    """
    return torch.tensor(USUAL * tolerance * math.sqrt(size), dtype=torch.float64)


def error_of_finest(resolutions: Sequence[Tensor], solver: Solver) -> Tensor:
    """Estimated error of the last of results, shape ``(B,)``; NaN where it is not known.

    Args:
        resolutions: Parts ``(P, B)`` of two or three results, the coarsest first.
        solver: An adaptive one has tolerances that are a factor of ten apart, any other numbers
            of steps that are a factor of two apart.
    """
    parts = torch.stack([part.detach() for part in resolutions])
    changes = parts.diff(dim=0).flip(0)  # the last one first
    total, norm = changes.sum(1).abs(), changes.square().sum(1).sqrt()
    if len(resolutions) == 2:
        return OF_TWO * torch.maximum(total[0], norm[0])
    ratio = norm[0] / norm[1].clamp(min=torch.finfo(norm.dtype).tiny)
    if solver.adaptive:
        error = torch.stack([total[0], PARTS * norm[0], BEFORE * norm[1]]).amax(0)
        error = error if solver.in_noise_units else OTHER_UNITS * error
    else:
        within = ratio.clamp(max=LARGEST)
        left = MARGIN * within / (1 - within) * total[0]
        error = torch.stack([left, *total, *norm]).amax(0)
    error = torch.where(ratio > 1, torch.maximum(error, GROWING * norm[0]), error)
    return error.masked_fill((ratio > UNKNOWN) & (norm[0] > SMALL), torch.nan)
