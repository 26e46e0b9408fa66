"""The variance-preserving SDE with the cosine schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_models._utils.shapes import Time, as_time
from sde_models.sdes.gaussian import GaussianSDE


class CosineSDE(GaussianSDE):
    r"""Variance-preserving SDE with the cosine schedule.

    .. math:: \alpha_t = \cos(\pi t / 2), \quad \sigma_t = \sin(\pi t / 2), \quad
              g = \sqrt{\pi \tan(\pi t / 2)} .

    Args:
        t_min: Truncation time; sigma(1e-3) is 1.6e-3.
        t_max: Time of the noise, below 1, where g is infinite; alpha(0.995) is 0.0079.
        data_std: Standard deviation of the data.

    Reference:
        Nichol and Dhariwal 2021, arXiv:2102.09672, with offset s = 0 and t_min in its place.

    Example:
        >>> CosineSDE().t_from_log_snr(0.0)
        tensor(0.5000)
    """

    diverges_at = 1.0

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.995, data_std: float = 1.0) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)

    def alpha(self, t: Time) -> Tensor:
        return torch.cos(0.5 * math.pi * as_time(t))

    def alpha_rate(self, t: Time) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def sigma(self, t: Time) -> Tensor:
        return torch.sin(0.5 * math.pi * as_time(t))

    def sigma_rate(self, t: Time) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(math.pi * torch.tan(0.5 * math.pi * as_time(t)))

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        return torch.atan(torch.exp(-0.5 * as_time(log_snr))) * (2 / math.pi)
