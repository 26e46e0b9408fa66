"""The standard error of a mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def standard_error(estimates: Tensor) -> Tensor:
    """Standard error of the mean of ``(B, n)`` estimates, shape ``(B,)``; NaN for n = 1.

    Example:
        >>> standard_error(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
        tensor([1., 0.])
    """
    if estimates.shape[1] == 1:
        return torch.full_like(estimates[:, 0], math.nan)
    return estimates.std(dim=1) / math.sqrt(estimates.shape[1])
