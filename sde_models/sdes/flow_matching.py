"""The straight path of flow matching, as an SDE."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_models._utils.shapes import Time, as_time
from sde_models.sdes.gaussian import GaussianSDE


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

    diverges_at = 1.0

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 0.995, data_std: float = 1.0) -> None:
        super().__init__(t_min=t_min, t_max=t_max, data_std=data_std)

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
