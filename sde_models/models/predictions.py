r"""What a network predicts, and how to read the data and the noise from it.

With :math:`x_t = \alpha x_0 + \sigma \epsilon`, any one of x0, eps,
:math:`v = \alpha\epsilon - \sigma x_0`, the score :math:`-\epsilon/\sigma` and the velocity
:math:`\alpha' x_0 + \sigma' \epsilon` gives the others.
Each is written here once, in both directions, and without the cancellation that
:math:`(x_t - \alpha x_0)/\sigma` suffers where sigma is small. All are linear: x0 and eps are a
factor times the state plus a factor times the output. The factors depend on the time only, by alpha
and sigma, so that a solver with a fixed grid computes them once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_models._utils.errors import find_by_name

Pair = tuple[Tensor, Tensor]
Factors = tuple[Tensor, Tensor] | None
"""Factors of the state and of the output; None stands for the output itself."""


class Prediction(ABC):
    """One meaning of a network's output. Alpha and sigma arrive shaped for broadcasting.

    Attributes:
        scales: The functions of time of a :class:`~sde_models.GaussianSDE` whose values
            :meth:`factors` and :meth:`target` take: alpha and sigma, and their rates if need be.
    """

    scales: tuple[str, ...] = ("alpha", "sigma")

    @abstractmethod
    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        """Return the factors that give x0, and those that give eps."""

    @abstractmethod
    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        """Return the network's target for these x0 and eps."""

    def clock(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the time input of the network, in the shape of the scales."""
        return t

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        """Return the divisor of the state at the network's input; None for 1."""
        return None

    def denoise(self, output: Tensor, x: Tensor, *scales: Tensor) -> Pair:
        """Return (x0, eps) as the network's output implies them."""
        of_x0, of_eps = self.factors(*scales)
        return _weigh(of_x0, x, output), _weigh(of_eps, x, output)

    def network_input(
        self, t: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs of the network: the time, shape ``(B,)``, and the scaled state."""
        scale = self.input_scale(alpha, sigma)
        clock = self.clock(t, alpha.reshape(-1), sigma.reshape(-1)).expand_as(t)
        return clock, x if scale is None else x / scale


def _weigh(factors: Factors, x: Tensor, output: Tensor) -> Tensor:
    return output if factors is None else factors[0] * x + factors[1] * output


class Eps(Prediction):
    """The noise."""

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        return (1 / alpha, -sigma / alpha), None

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        return eps


class X0(Prediction):
    """The data."""

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        return None, (1 / sigma, -alpha / sigma)

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        return x0


class V(Prediction):
    r"""The combination :math:`v = \alpha\epsilon - \sigma x_0` (Salimans and Ho 2022).

    Holds for any alpha and sigma: the inverse divides by :math:`\alpha^2 + \sigma^2`, which is 1
    only for variance-preserving processes.
    """

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        norm = alpha.square() + sigma.square()
        return (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        return alpha * eps - sigma * x0


class Score(Prediction):
    r"""The score :math:`\nabla \log p_t(x) = -\epsilon / \sigma`."""

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        return (1 / alpha, sigma.square() / alpha), (torch.zeros_like(sigma), -sigma)

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        return -eps / sigma


class Velocity(Prediction):
    r"""The velocity of the flow, :math:`u = dx_t/dt = \alpha' x_0 + \sigma' \epsilon`.

    On the straight path of :class:`~sde_models.FlowMatchingSDE` it is :math:`\epsilon - x_0`. The
    determinant :math:`\alpha \sigma' - \sigma \alpha'` of the inverse is positive where the log-SNR
    falls.

    Reference:
        Lipman et al. 2022, Flow matching for generative modeling, arXiv:2210.02747.
    """

    scales = ("alpha", "sigma", "alpha_rate", "sigma_rate")

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        alpha_rate, sigma_rate = rates
        norm = alpha * sigma_rate - sigma * alpha_rate
        return (sigma_rate / norm, -sigma / norm), (-alpha_rate / norm, alpha / norm)

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        alpha_rate, sigma_rate = rates
        return alpha_rate * x0 + sigma_rate * eps


class EDM(Prediction):
    r"""The preconditioned residual F of Karras et al. 2022, for any alpha and sigma.

    With :math:`s` the standard deviation of the data and
    :math:`S^2 = \sigma^2 + \alpha^2 s^2`,

    .. math:: \hat x_0 = \frac{\alpha s^2}{S^2} x + \frac{\sigma s}{S} F(x / S, \lambda), \qquad
              \lambda = \tfrac14 \log (\sigma / \alpha),

    so that input and target of F have unit variance at every noise level.

    Args:
        data_std: Standard deviation of a coordinate of the data.

    Reference:
        Karras et al. 2022, table 1 and appendix B.6, arXiv:2206.00364.
    """

    def __init__(self, data_std: float) -> None:
        self.data_std = data_std

    def _total(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.hypot(sigma, self.data_std * alpha)

    def factors(self, alpha: Tensor, sigma: Tensor, *rates: Tensor) -> tuple[Factors, Factors]:
        s, total = self.data_std, self._total(alpha, sigma)
        of_x0 = alpha * (s / total) ** 2, sigma * s / total
        return of_x0, (sigma / total.square(), -alpha * s / total)

    def target(
        self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, *rates: Tensor
    ) -> Tensor:
        s = self.data_std
        return (sigma * x0 - alpha * s**2 * eps) / (s * self._total(alpha, sigma))

    def clock(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 0.25 * torch.log(sigma / alpha)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        return self._total(alpha, sigma)


PREDICTIONS: dict[str, type[Prediction]] = {
    "eps": Eps,
    "x0": X0,
    "v": V,
    "score": Score,
    "velocity": Velocity,
}


def find_prediction(
    prediction: str | None, preconditioning: str | None, data_std: float
) -> Prediction:
    """Look up what a network predicts.

    Raises:
        ValueError: For an unknown name, or a prediction together with a preconditioning, which
            fixes it.
    """
    if preconditioning is not None:
        if preconditioning != "edm":
            raise ValueError(f"unknown preconditioning {preconditioning!r}; known: 'edm'")
        if prediction not in (None, "x0"):
            raise ValueError(
                f"preconditioning='edm' reads the network's output as the residual of x0, so "
                f"prediction={prediction!r} has no meaning with it: leave prediction out"
            )
        return EDM(data_std)
    return find_by_name("prediction", "eps" if prediction is None else prediction, PREDICTIONS)()
