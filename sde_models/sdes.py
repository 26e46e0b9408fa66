r"""The forward SDEs of the literature, in closed form.

Each is a :class:`~sde_models.GaussianSDE`: see there for what alpha, sigma, drift and
diffusion have to do with each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sde_models._shapes import Time, as_time
from sde_models.base_sdes import SDE
from sde_models.gaussian_sdes import GaussianSDE

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineSDE",
    "FlowMatchingSDE",
    "GaussianSDE",
    "SubVPSDE",
]


class _LinearBeta(GaussianSDE):
    r"""What VP and sub-VP share: :math:`\beta(t) = \beta_{min} + t(\beta_{max} - \beta_{min})`."""

    def __init__(
        self, beta_min: float, beta_max: float, *, t_min: float, t_max: float, data_std: float
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(
                f"wanted 0 < beta_min <= beta_max, got beta_min={beta_min}, beta_max={beta_max}"
            )
        self.beta_min = float(beta_min)
        self.beta_max = float(beta_max)

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

    def __init__(
        self,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        *,
        t_min: float = 1e-5,
        t_max: float = 1.0,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(beta_min, beta_max, t_min=t_min, t_max=t_max, data_std=data_std)

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
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"wanted 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, "
                f"sigma_max={sigma_max}"
            )
        self.sigma_min = float(sigma_min)
        self.sigma_max = float(sigma_max)
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

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.995, data_std: float = 1.0) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)
        _require_below_one(self)

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


class FlowMatchingSDE(GaussianSDE):
    r"""The straight path of flow matching and rectified flow, as an SDE.

    .. math:: \alpha_t = 1 - t, \quad \sigma_t = t, \quad
              f = -\frac{x}{1 - t}, \quad g = \sqrt{\frac{2t}{1 - t}} .

    Its probability flow has the velocity eps - x0 that flow matching regresses on.

    Args:
        t_min: Truncation time.
        t_max: Time of the noise, below 1, where g is infinite.
        data_std: Standard deviation of the data.

    Reference:
        Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.

    Example:
        >>> FlowMatchingSDE().diffusion(0.5)
        tensor(1.4142)
    """

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.995, data_std: float = 1.0) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)
        _require_below_one(self)

    def alpha(self, t: Time) -> Tensor:
        return 1 - as_time(t)

    def alpha_rate(self, t: Time) -> Tensor:
        return -torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return 1.0 * as_time(t)

    def sigma_rate(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def diffusion(self, t: Time) -> Tensor:
        t = as_time(t)
        return torch.sqrt(2 * t / (1 - t))

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-0.5 * as_time(log_snr))


def _require_below_one(sde: GaussianSDE) -> None:
    if sde.t_max >= 1:
        raise ValueError(
            f"t_max of {type(sde).__name__} must lie below 1, where the noise of its SDE is "
            f"infinite; got {sde.t_max}"
        )
