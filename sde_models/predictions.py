r"""What a network predicts, and how to read the data and the noise from it.

With :math:`x_t = \alpha x_0 + \sigma \epsilon`, any one of x0, eps,
:math:`v = \alpha\epsilon - \sigma x_0` and the score :math:`-\epsilon/\sigma` gives the others.
Each is written here once, in both directions, and without the cancellation that
:math:`(x_t - \alpha x_0)/\sigma` suffers where sigma is small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_models.errors import nearest_names

Pair = tuple[Tensor, Tensor]


class Prediction(ABC):
    """One meaning of a network's output. Coefficients arrive shaped for broadcasting."""

    @abstractmethod
    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        """Return (x0, eps) as the network's output implies them."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network's output should be for these x0 and eps."""

    def network_input(
        self, t: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the time, shape ``(B,)``, and the state that the network is shown."""
        return t, x


class Eps(Prediction):
    """The noise."""

    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        return (x - sigma * output) / alpha, output

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return eps


class X0(Prediction):
    """The data."""

    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        return output, (x - alpha * output) / sigma

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0


class V(Prediction):
    r"""The velocity :math:`v = \alpha\epsilon - \sigma x_0` (Salimans and Ho 2022).

    Holds for any alpha and sigma: the inverse divides by :math:`\alpha^2 + \sigma^2`, which is 1
    only for variance-preserving processes.
    """

    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        norm = alpha.square() + sigma.square()
        return (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * eps - sigma * x0


class Score(Prediction):
    r"""The score :math:`\nabla \log p_t(x) = -\epsilon / \sigma`."""

    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        return (x + sigma.square() * output) / alpha, -sigma * output

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return -eps / sigma


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

    def denoise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Pair:
        s, total = self.data_std, self._total(alpha, sigma)
        x0 = alpha * (s / total) ** 2 * x + sigma * s / total * output
        eps = sigma / total.square() * x - alpha * s / total * output
        return x0, eps

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        s = self.data_std
        return (sigma * x0 - alpha * s**2 * eps) / (s * self._total(alpha, sigma))

    def network_input(
        self, t: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        clock = 0.25 * torch.log(sigma / alpha).reshape(-1)
        return clock.expand_as(t), x / self._total(alpha, sigma)


PREDICTIONS: dict[str, type[Prediction]] = {"eps": Eps, "x0": X0, "v": V, "score": Score}


def find_prediction(
    prediction: str | None, preconditioning: str | None, data_std: float
) -> Prediction:
    """Look up what a network predicts.

    Raises:
        ValueError: For an unknown name, or a prediction beside a preconditioning that fixes it.
    """
    if preconditioning is not None:
        if preconditioning != "edm":
            raise ValueError(f"unknown preconditioning {preconditioning!r}; known: 'edm'")
        if prediction not in (None, "x0"):
            raise ValueError(
                f"preconditioning='edm' reads the network's output as the residual of x0, so "
                f"prediction={prediction!r} has no meaning beside it: leave prediction out"
            )
        return EDM(data_std)
    name = "eps" if prediction is None else prediction
    if name not in PREDICTIONS:
        raise ValueError(f"unknown prediction {name!r}; {nearest_names(name, list(PREDICTIONS))}")
    return PREDICTIONS[name]()
