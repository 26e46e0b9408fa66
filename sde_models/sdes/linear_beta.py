r"""Variance-preserving and sub-variance-preserving SDEs, whose rate of noising rises linearly."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_models._utils.arguments import as_number
from sde_models._utils.shapes import Time, as_time
from sde_models.sdes.gaussian import GaussianSDE


class _LinearBeta(GaussianSDE):
    r"""What VP and sub-VP share: :math:`\beta(t) = \beta_{min} + t(\beta_{max} - \beta_{min})`."""

    def __init__(
        self,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        *,
        t_min: float = 1e-5,
        t_max: float = 1.0,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)
        self.beta_min = beta_min = as_number("beta_min", beta_min)
        self.beta_max = beta_max = as_number("beta_max", beta_max)
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"expected 0 < beta_min <= beta_max, got beta_min={beta_min}, beta_max={beta_max}"
            )

    def beta(self, t: Time) -> Tensor:
        """Rate of noising, per unit of time."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Tensor:
        r"""The integral of beta from 0 to ``t``, which is :math:`-2 \log \alpha_t`."""
        t = as_time(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _t_from_integrated_beta(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-0.5 * self.integrated_beta(t))

    def alpha_rate(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t) * self.alpha(t)

    def drift_coefficient(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def extra_repr(self) -> str:
        return f"beta_min={self.beta_min:g}, beta_max={self.beta_max:g}, t_min={self.t_min:g}"


class VPSDE(_LinearBeta):
    r"""Variance-preserving SDE, the continuous limit of DDPM.

    .. math:: dx = -\tfrac12 \beta(t) x\,dt + \sqrt{\beta(t)}\,dB, \quad
              \alpha_t = e^{-B(t)/2}, \quad \sigma_t^2 = 1 - e^{-B(t)}, \quad
              B(t) = \int_0^t \beta .

    Args:
        beta_min: Rate of noising at t = 0.
        beta_max: Rate of noising at t = 1.
        t_min: Truncation time; sigma(1e-5) is 1e-3.
        t_max: Time of the noise.
        data_std: Standard deviation of the data.

    Reference:
        Song et al. 2021, equation 11, arXiv:2011.13456.

    Example:
        >>> sde = VPSDE()
        >>> t = torch.tensor(0.3)
        >>> bool((sde.alpha(t) ** 2 + sde.sigma(t) ** 2 - 1).abs() < 1e-6)
        True
    """

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def sigma_rate(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t) * torch.exp(-self.integrated_beta(t)) / self.sigma(t)

    def diffusion(self, t: Time) -> Tensor:
        return self.beta(t).sqrt()

    def log_snr(self, t: Time) -> Tensor:
        integral = self.integrated_beta(t)
        return -(integral + torch.log(-torch.expm1(-integral)))

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        return self._t_from_integrated_beta(softplus(-as_time(log_snr), threshold=50.0))


class SubVPSDE(_LinearBeta):
    r"""Sub-variance-preserving SDE: the drift of VP with less noise.

    .. math:: \alpha_t = e^{-B(t)/2}, \quad \sigma_t = 1 - e^{-B(t)}, \quad
              g^2 = \beta(t)\,(1 - e^{-2 B(t)}) .

    Args:
        beta_min: Rate of noising at t = 0.
        beta_max: Rate of noising at t = 1.
        t_min: Truncation time; sigma grows from 0 linearly here, sigma(1e-3) is 1.1e-4.
        t_max: Time of the noise.
        data_std: Standard deviation of the data.

    Reference:
        Song et al. 2021, equation 13, arXiv:2011.13456.

    Example:
        >>> sde = SubVPSDE()
        >>> bool(sde.sigma(0.5) < VPSDE().sigma(0.5))
        True
    """

    def __init__(
        self,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(beta_min, beta_max, t_min=t_min, t_max=t_max, data_std=data_std)

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self.integrated_beta(t))

    def sigma_rate(self, t: Time) -> Tensor:
        return self.beta(t) * torch.exp(-self.integrated_beta(t))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(-2 * self.integrated_beta(t)))

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        half = 0.5 * as_time(log_snr)
        # sigma / alpha = e^{-half} with sigma = 1 - alpha^2 is a quadratic in alpha. Its root is
        # taken as log alpha where noise rules and through sigma where signal does, so that
        # neither end cancels.
        root = torch.sqrt(1 + 4 * torch.exp(2 * half.clamp(max=20.0)))
        noisy = -2 * (math.log(2.0) + half - torch.log1p(root))
        clean = -torch.log1p(-2 / (1 + torch.sqrt(1 + 4 * torch.exp(2 * half.clamp(min=0.0)))))
        return self._t_from_integrated_beta(torch.where(half < 0, noisy, clean))
