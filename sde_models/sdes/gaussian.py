r"""The base of forward SDEs with a Gaussian kernel: how alpha and sigma make drift and diffusion.

Every equation here has the form

.. math:: dx = f(t, x)\,dt + g(t)\,dB, \qquad t \in [t_{min}, t_{max}],

with data at ``t_min`` and noise at ``t_max``. Those with a Gaussian kernel are fixed by two
functions of time, the signal scale alpha and the noise scale sigma:

.. math:: p(x_t \mid x_0) = N(\alpha_t x_0, \sigma_t^2 I), \quad
          f = \frac{d \log \alpha}{dt} x, \quad
          g^2 = \frac{d \sigma^2}{dt} - 2 \sigma^2 \frac{d \log \alpha}{dt}.

References:
    Song et al. 2021, Score-based generative modeling through SDEs, arXiv:2011.13456.
    Kingma et al. 2021, Variational diffusion models, arXiv:2107.00630 (log-SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.arguments import check_positive
from sde_models._utils.conditions import copied
from sde_models._utils.shapes import (
    Time,
    as_time,
    check_floating,
    leaf_copy,
    per_sample,
    time_precision,
)
from sde_models.sdes.base import SDE
from sde_models.sdes.priors import IsotropicGaussian
from sde_models.sdes.system import AtNode, AtNodes, as_coefficients

FUNCTIONS_OF_TIME = (
    "alpha", "sigma", "alpha_rate", "sigma_rate", "drift_coefficient", "diffusion", "log_snr",
)  # fmt: skip


class GaussianSDE(SDE):
    r"""Base class of SDEs with the kernel :math:`p(x_t|x_0) = N(\alpha_t x_0, \sigma_t^2 I)`.

    A subclass defines :meth:`alpha` and :meth:`sigma`, in torch operations; drift, diffusion and
    the inverse of the log-SNR follow by differentiation and bisection. The built-in ones override
    them by closed forms. Learned quantities in alpha and sigma must be registered as parameters.

    Args:
        t_min: Time of the data, where the kernel is truncated.
        t_max: Time of the noise.
        data_std: Standard deviation of a coordinate of the data, used in the prior and in
            preconditioning.

    Raises:
        ValueError: If the times are not ordered or ``data_std`` is not positive.

    Example:
        >>> class Exponential(GaussianSDE):
        ...     def alpha(self, t):
        ...         return torch.exp(-as_time(t))
        ...     def sigma(self, t):
        ...         return torch.sqrt(-torch.expm1(-2 * as_time(t)))
        >>> sde = Exponential(t_min=1e-3, t_max=4.0)
        >>> sde.drift_coefficient(1.0), sde.diffusion(1.0) ** 2
        (tensor(-1.), tensor(2.0000))
    """

    default_grid = "log-snr"
    default_solver = "adams-batch"
    gaussian = True
    diverges_at: float = math.inf
    """Time at which the diffusion is infinite, which ``t_max`` must lie below."""

    def __init__(self, *, t_min: float, t_max: float, data_std: float = 1.0) -> None:
        super().__init__(t_min=t_min, t_max=t_max)
        self.data_std = check_positive("data_std", data_std)
        if self.t_max >= self.diverges_at:
            raise ValueError(
                f"t_max of {type(self).__name__} must lie below {self.diverges_at:g}, where the "
                f"noise of its SDE is infinite; got {self.t_max}"
            )

    def alpha(self, t: Time) -> Tensor:
        """Scale of the signal, shape of ``t``."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t)")

    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise, shape of ``t``."""
        raise NotImplementedError(f"{type(self).__name__} must define sigma(t)")

    def times(self, values: Tensor | Sequence[float]) -> Tensor:
        """Times in double precision where the device has it, next to the parameters of the SDE."""
        like = next(self.parameters(), torch.empty(0, device="cpu"))
        return torch.as_tensor(values, dtype=time_precision(like), device=like.device)

    def alpha_rate(self, t: Time) -> Tensor:
        """Time derivative of alpha, shape of ``t``."""
        return self._rate(self.alpha, as_time(t))

    def sigma_rate(self, t: Time) -> Tensor:
        """Time derivative of sigma, shape of ``t``."""
        return self._rate(self.sigma, as_time(t))

    def _rate(self, function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """Derivative of a function that acts on each time by itself."""
        learned = t.requires_grad or any(p.requires_grad for p in self.parameters())
        keep_graph = learned and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = t if keep_graph and t.requires_grad else leaf_copy(t)
            value = function(point)
            if not value.requires_grad:
                return torch.zeros_like(t)
            (rate,) = torch.autograd.grad(
                value.sum(), point, create_graph=keep_graph, materialize_grads=True
            )
        return rate

    def drift_coefficient(self, t: Time) -> Tensor:
        r"""The factor :math:`a(t) = d \log \alpha / dt` in :math:`f(t, x) = a(t) x`."""
        t = as_time(t)
        return self.alpha_rate(t) / self.alpha(t)

    def diffusion(self, t: Time) -> Tensor:
        r"""The noise amplitude :math:`g(t)`, shape of ``t``."""
        t = as_time(t)
        sigma = self.sigma(t)
        squared = 2 * sigma * (self.sigma_rate(t) - sigma * self.drift_coefficient(t))
        return squared.sqrt()

    def log_snr(self, t: Time) -> Tensor:
        r"""Log signal-to-noise ratio :math:`\log(\alpha^2 / \sigma^2)`, falling in ``t``."""
        t = as_time(t)
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def t_from_log_snr(self, log_snr: Time) -> Tensor:
        """Invert :meth:`log_snr`, by bisection unless a subclass has a closed form."""
        target = as_time(log_snr)
        low = torch.full_like(target, self.t_min)
        high = torch.full_like(target, self.t_max)
        for _ in range(70):
            # In the middle of log t, so that small times are found to their own precision.
            middle = low.sqrt() * high.sqrt() if self.t_min > 0 else 0.5 * (low + high)
            noisier = self.log_snr(middle) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return middle

    def f(self, t: Time, x: Tensor) -> Tensor:
        """Drift a(t) x."""
        return per_sample(self.drift_coefficient(as_time(t, x)), x) * x

    def g(self, t: Time, x: Tensor) -> Tensor:
        """Diffusion g(t), expanded to the shape of ``x``."""
        return self.noise_scale(t, x).expand_as(x)

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        return per_sample(self.diffusion(as_time(t, x)), x)

    def perturb(self, t: Time, x0: Tensor, noise: Tensor) -> Tensor:
        r"""Noise data: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`.

        Args:
            t: Time, scalar or ``(B,)``.
            x0: Data, shape ``(B, *event)``.
            noise: Standard normal numbers, shape of ``x0``.

        Raises:
            TypeError: If ``x0`` is not floating.
            ValueError: If a shape does not fit or ``t`` is outside ``[t_min, t_max]``.
        """
        check_floating(x0, "x0")
        if noise.shape != x0.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, expected that of x0: {tuple(x0.shape)}"
            )
        t = as_time(t, x0)
        self.check_times(t)
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * noise

    def prior(self, event_shape: Sequence[int]) -> IsotropicGaussian:
        r"""The Gaussian at ``t_max``, of variance :math:`\alpha^2 s^2 + \sigma^2`.

        Here s is ``data_std``. For VP with unit-variance data this is N(0, I).
        """
        t = self.times([self.t_max])[0]
        with torch.no_grad():
            signal, noise = float(self.alpha(t)) * self.data_std, float(self.sigma(t))
        return IsotropicGaussian(event_shape, math.hypot(signal, noise))

    def reverse_drift(
        self,
        model: Any,
        t: Tensor,
        x: Tensor,
        eta: float = 0.0,
        cond: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        r"""Drift of the reversed process, written without cancellation:

        .. math:: \alpha'_t \hat x_0 + \sigma'_t \hat\epsilon
                  + \frac{\eta^2}{2} \frac{g^2}{\sigma_t} \hat\epsilon .
        """
        x0, eps = model.denoise(t.clone(), x.clone(), **copied(cond))
        of_x0, of_eps = self.reverse_coefficients(t, eta)
        return per_sample(of_x0, x) * x0 + per_sample(of_eps, x) * eps

    def reverse_coefficients(self, t: Tensor, eta: float = 0.0) -> tuple[Tensor, Tensor]:
        """The factors of x0 and eps in :meth:`reverse_drift`, shape of ``t``."""
        of_eps = self.sigma_rate(t)
        if eta:
            of_eps = of_eps + 0.5 * eta**2 * self.diffusion(t).square() / self.sigma(t)
        return self.alpha_rate(t), of_eps

    def at_nodes(self, times: Tensor, like: Tensor) -> AtNodes:
        times = self.times(times)

        def drift() -> AtNode:
            factors = as_coefficients(self.drift_coefficient(times))
            return lambda k, x: factors[k] * x

        def noise_scale() -> Callable[[int, Tensor], Any]:
            scales = as_coefficients(self.diffusion(times))
            return lambda k, x: scales[k]

        return AtNodes(self, drift, noise_scale)

    def check_keeps_times(self) -> None:
        """Refuse functions of time that change the times they are given in place.

        Raises:
            ValueError: With the name of the function.
        """
        times = self.times([self.t_min, self.t_max])
        for name in FUNCTIONS_OF_TIME:
            given = times.clone()
            with torch.no_grad():
                getattr(self, name)(given)
            if not torch.equal(given, times):
                raise ValueError(
                    f"{name} of {type(self).__name__} changes its times in place, and with them "
                    "those of the caller: write t * 2 in place of t.mul_(2)"
                )

    def check_reversible(self) -> None:
        """Refuse an alpha and sigma that do not describe a noising process.

        Raises:
            ValueError: If on ``[t_min, t_max]`` the log-SNR is not finite or does not fall, or
                the rates are not the derivatives of alpha and sigma.
        """
        super().check_reversible()
        t = self.times(torch.linspace(self.t_min, self.t_max, 257, dtype=torch.float64))
        with torch.no_grad():
            log_snr = self.log_snr(t)
        bad = ~torch.isfinite(log_snr)
        bad[1:] |= log_snr[1:] >= log_snr[:-1]
        if bool(bad.any()):
            where = float(t[bad.nonzero()[0, 0]])
            raise ValueError(
                f"the log-SNR of {type(self).__name__} must be finite and fall on "
                f"[{self.t_min:g}, {self.t_max:g}]; it does not at t={where:g}: check alpha and "
                "sigma, or choose t_min above 0 or t_max lower"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        span = self.t_max - self.t_min
        t = self.times(self.t_min + span * torch.linspace(0.05, 0.95, 19, dtype=torch.float64))
        h = 1e-4 * span
        for name in ("alpha", "sigma"):
            scale = getattr(self, name)
            with torch.no_grad():
                measured = (scale(t + h) - scale(t - h)) / (2 * h)
                stated = getattr(self, f"{name}_rate")(t)
            if bool(((measured - stated).abs() > 0.02 * measured.abs().max() + 1e-6 / span).any()):
                raise ValueError(
                    f"{name}_rate of {type(self).__name__} is not the derivative of {name}: "
                    f"override both, or derive from GaussianSDE and write {name} in torch "
                    "operations on t, without no_grad or detach"
                )
