"""The error of a density: from the steps, the quadrature and the probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class HasError:
    """The error at 95% of a result with its three sources."""

    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor

    @property
    def error(self) -> Tensor:
        """Error at 95%; NaN where it is not known.

        The error of the steps, plus that of probes and quadrature, which are independent: the root
        of the sum of the squares of two standard errors and of the quadrature's error.
        """
        return self.solver_error + torch.hypot(2 * self.stderr, self.quadrature_error)


@dataclass(frozen=True)
class Errors(HasError):
    """The errors of values by their sources.

    Attributes:
        stderr: Standard error from the probes, shape ``(B,)``.
        solver_error: Error from the steps, shape ``(B,)``.
        quadrature_error: Error of the quadrature at 95%, shape ``(B,)``.
    """

    stderr: Tensor
    solver_error: Tensor
    quadrature_error: Tensor
