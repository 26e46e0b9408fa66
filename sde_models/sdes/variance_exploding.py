"""The variance-exploding SDE: noise on top of data that stay as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_models._utils.arguments import as_number
from sde_models._utils.shapes import Time, as_time
from sde_models.sdes.gaussian import GaussianSDE


class VESDE(GaussianSDE):
    r"""Variance-exploding SDE, the continuous limit of noise-conditional score networks.

    .. math:: \alpha_t = 1, \quad
              \sigma_t = \sigma_{min} (\sigma_{max} / \sigma_{min})^t, \quad
              g = \sigma_t \sqrt{2 \log(\sigma_{max} / \sigma_{min})} .

    Args:
        sigma_min: Noise at t = 0, in units of the data.
        sigma_max: Noise at t = 1, in units of the data.
        t_min: Time of the data; sigma_min already truncates.
        t_max: Time of the noise.
        data_std: Standard deviation of the data. The prior has variance sigma_max^2 + data_std^2.

    Reference:
        Song et al. 2021, equation 9, arXiv:2011.13456.

    Example:
        >>> VESDE(0.01, 50.0).sigma(1.0)
        tensor(50.)
    """

    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        *,
        t_min: float = 0.0,
        t_max: float = 1.0,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)
        self.sigma_min = sigma_min = as_number("sigma_min", sigma_min)
        self.sigma_max = sigma_max = as_number("sigma_max", sigma_max)
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"expected 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, "
                f"sigma_max={sigma_max}"
            )
        self.log_ratio = math.log(sigma_max / sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def alpha_rate(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(as_time(t) * self.log_ratio)

    def sigma_rate(self, t: Time) -> Tensor:
        return self.log_ratio * self.sigma(t)

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def log_snr(self, t: Time) -> Tensor:
        return -2 * (math.log(self.sigma_min) + as_time(t) * self.log_ratio)

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        return (-0.5 * as_time(log_snr) - math.log(self.sigma_min)) / self.log_ratio

    def extra_repr(self) -> str:
        return f"sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"
