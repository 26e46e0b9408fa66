r"""Clocks in which a probability flow is smooth, for solvers that choose their own steps.

In a clock :math:`\tau(t)` and with a scale :math:`S(t)`, the state :math:`y = x / S` runs by

.. math:: \frac{dy}{d\tau} = \frac1S \frac{dt}{d\tau} \frac{dx}{dt} - \frac{d \log S}{d\tau}\, y .

For a :class:`~sde_models.GaussianSDE` and data of standard deviation s, the scale
:math:`S = \sqrt{s^2 \alpha^2 + \sigma^2}` makes the flow of Gaussian data stand still, and the
angle :math:`\tau = \arctan(\sigma / (s \alpha))` gives it the velocity
:math:`\cos(\tau)\,\hat\epsilon - \sin(\tau)\,\hat x_0 / s`, of size 1 from one end to the other,
whatever alpha and sigma are.

Reference:
    Salimans and Ho 2022, Progressive distillation, appendix D, arXiv:2202.00512 (the angle).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_models.sdes.system import System


class Rates(NamedTuple):
    r"""How model time and scale change with the clock, each in the shape of the times given.

    Attributes:
        pace: :math:`dt / d\tau`.
        scale: :math:`S`.
        growth: :math:`d \log S / d\tau`.
    """

    pace: Tensor
    scale: Tensor
    growth: Tensor

    def shaped(self, shape: tuple[int, ...], dtype: torch.dtype) -> Rates:
        """The same in another shape and precision."""
        return Rates(*(value.reshape(shape).to(dtype) for value in self))

    def unbind(self) -> list[Rates]:
        """One for each entry of the first dimension."""
        return [Rates(*parts) for parts in zip(*(v.unbind() for v in self), strict=True)]


class Clock(ABC):
    """A strictly monotone function of model time; all tensors are in double precision.

    It carries no graph, also where alpha and sigma are learned: only the drift is differentiated,
    with the steps held fixed.
    """

    @abstractmethod
    def read(self, t: Tensor) -> Tensor:
        """The clock at model times ``t``."""

    @abstractmethod
    def time(self, clock: Tensor) -> Tensor:
        """The model times at which it shows ``clock``."""

    @abstractmethod
    def rates(self, t: Tensor) -> Rates:
        """The factors of the equation at model times ``t``."""


class ModelTime(Clock):
    """Model time itself, with nothing rescaled."""

    def read(self, t: Tensor) -> Tensor:
        return t

    def time(self, clock: Tensor) -> Tensor:
        return clock

    def rates(self, t: Tensor) -> Rates:
        one = torch.ones_like(t)
        return Rates(one, one, torch.zeros_like(t))


class GaussianClock(Clock):
    """A clock computed from alpha and sigma.

    Args:
        system: The equation. The state is rescaled only for the system of a model; that of another
            system may hold more than a noised sample.
    """

    def __init__(self, system: System) -> None:
        self.sde: Any = system.sde
        self.rescale = system.denoises
        self.std: float = self.sde.data_std

    @torch.no_grad()
    def time(self, clock: Tensor) -> Tensor:
        t: Tensor = self.sde.t_from_log_snr(self._log_snr(clock))
        return t.clamp(self.sde.t_min, self.sde.t_max)

    @torch.no_grad()
    def rates(self, t: Tensor) -> Rates:
        sde = self.sde
        alpha, alpha_rate = self.std * sde.alpha(t), self.std * sde.alpha_rate(t)
        sigma, sigma_rate = sde.sigma(t), sde.sigma_rate(t)
        squared = alpha.square() + sigma.square()
        pace = self._pace(alpha * sigma, squared) / (alpha * sigma_rate - sigma * alpha_rate)
        if not self.rescale:
            return Rates(pace, torch.ones_like(t), torch.zeros_like(t))
        growth = pace * (alpha * alpha_rate + sigma * sigma_rate) / squared
        return Rates(pace, squared.sqrt(), growth)

    @abstractmethod
    def _log_snr(self, clock: Tensor) -> Tensor:
        """The log-SNR at which it shows ``clock``."""

    @abstractmethod
    def _pace(self, product: Tensor, squared: Tensor) -> Tensor:
        r""":math:`dt/d\tau` times :math:`s (\alpha \sigma' - \sigma \alpha')`.

        Args:
            product: :math:`s \alpha \sigma`.
            squared: :math:`S^2`.
        """


class Angle(GaussianClock):
    r"""The angle :math:`\arctan(\sigma / (s \alpha))`."""

    @torch.no_grad()
    def read(self, t: Tensor) -> Tensor:
        return torch.atan2(self.sde.sigma(t), self.std * self.sde.alpha(t))

    def _log_snr(self, clock: Tensor) -> Tensor:
        return -2 * torch.log(self.std * torch.tan(clock))

    def _pace(self, product: Tensor, squared: Tensor) -> Tensor:
        return squared


class HalfLogSnr(GaussianClock):
    r"""The half log-SNR :math:`\log(\alpha / \sigma)`."""

    @torch.no_grad()
    def read(self, t: Tensor) -> Tensor:
        return 0.5 * self.sde.log_snr(t)

    def _log_snr(self, clock: Tensor) -> Tensor:
        return 2 * clock

    def _pace(self, product: Tensor, squared: Tensor) -> Tensor:
        return -product


GAUSSIAN_CLOCKS: dict[str, type[GaussianClock]] = {"angle": Angle, "log-snr": HalfLogSnr}
CLOCKS = (*GAUSSIAN_CLOCKS, "t")


def has_gaussian_clock(system: System) -> bool:
    """Whether alpha and sigma are known, from which a clock is computed."""
    return system.sde is not None and bool(system.sde.gaussian)


def make_clock(name: str | None, system: System) -> Clock:
    """The clock of this name for a system; if None the angle where there is one, else t."""
    if name is None:
        name = "angle" if has_gaussian_clock(system) else "t"
    return ModelTime() if name == "t" else GAUSSIAN_CLOCKS[name](system)
