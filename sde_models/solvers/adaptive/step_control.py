r"""How the errors of steps are judged, and how long the next ones are: one step-size controller.

An error E is in units of tolerance: a step is accepted where :math:`E \le 1`. The next step is

.. math:: h_{n+1} = h_n\, \mathrm{clip}(\theta\, u_n, m, M)

with a safety factor :math:`\theta`, limits m and M, and :math:`u_n = E_n^{-r}` (integral control)
or :math:`(E_n^{-0.85} E_{n-1}^{0.2})^{1/p}` (proportional-integral) for a method of order p.

References:
    Hairer, Norsett and Wanner 1993, Solving ordinary differential equations I, section II.4; Hairer
    and Wanner 1996, II, section IV.2 (proportional-integral control).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-10
"""Errors below are taken for this one, since no error at all says nothing about the next step."""
SMALLEST_BEFORE = 1e-4
"""The same for the error of the step before, which lengthens the next step if it was small."""


def is_accepted(error: Tensor) -> Tensor:
    """Whether steps with these errors are accepted, shape ``(n,)``; not where the error is NaN."""
    return error <= 1


def integral(error: Tensor, exponent: float | Tensor) -> Tensor:
    """The factor :math:`E^{-r}`, shape ``(n,)``."""
    return error.clamp(min=SMALLEST) ** -exponent


def proportional_integral(error: Tensor, before: Tensor, order: float) -> Tensor:
    """The factor by the errors of a step and of the one accepted before, shape ``(n,)``.

    A rejected step is judged by its own error alone.
    """
    error, before = error.clamp(min=SMALLEST), before.clamp(min=SMALLEST_BEFORE)
    both = error**-0.85 * before**0.2
    return torch.where(is_accepted(error), both, 1 / error) ** (1 / order)


@dataclass(frozen=True)
class StepControl:
    """Limits to what an error says about the next step.

    Attributes:
        safety: Share of the step that the estimate allows.
        shrink: Least factor between a step and the next.
        grow: Largest factor.
    """

    safety: float
    shrink: float
    grow: float

    def factor(self, suggested: Tensor, may_grow: Tensor) -> Tensor:
        """Factor between each step and the next, shape ``(n,)``.

        Args:
            suggested: By the error, of :func:`integral` or :func:`proportional_integral`.
            may_grow: Where the next step may be the longer one: not after a rejection.
        """
        factor = (self.safety * suggested).clamp(self.shrink, self.grow)
        return torch.where(may_grow, factor, factor.clamp(max=1.0))
