"""A network that gives an energy, whose gradient is the score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.conditions import leave_inference_mode
from sde_models._utils.counting import record_vjps
from sde_models._utils.shapes import Time, leaf_copy, per_sample
from sde_models._utils.user_networks import NetworkCall, shape_of_network
from sde_models.models.base import Model, check_network
from sde_models.sdes.base import SDE


class EnergyModel(Model):
    r"""A network whose output is an energy: :math:`\nabla \log p_t(x) = -\nabla_x E(t, x)`.

    The score is a gradient by construction. Each evaluation costs a forward pass and a
    vector-Jacobian product.

    Args:
        network: Called as ``network(t, x, **cond)`` with ``t`` of shape ``(B,)``; returns one
            energy for each sample, shape ``(B,)`` or ``(B, 1)``.
        sde: Forward SDE with a Gaussian kernel.
        event_shape: Shape of one sample, as for :class:`~sde_models.ScoreModel`.

    Reference:
        Song and Ermon 2019, section 2, arXiv:1907.05600; Salimans and Ho 2021, Should EBMs
        model the energy or the score?

    Example:
        >>> class Bowl(torch.nn.Module):
        ...     def forward(self, t, x):
        ...         return 0.5 * x.square().sum(1)
        >>> EnergyModel(Bowl(), sm.VPSDE()).score(0.5, torch.ones(1, 2)).detach()
        tensor([[-1., -1.]])
    """

    def __init__(
        self, network: nn.Module, sde: SDE, *, event_shape: tuple[int, ...] | None = None
    ) -> None:
        network = check_network(network)
        super().__init__(sde, shape_of_network(network, event_shape))
        self._gaussian()
        self.network = network

    def energy(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        """Energy of each sample, shape ``(B,)``, defined up to a function of time."""
        return self._energy(self._checked(t, x), x, cond)

    def _energy(self, t: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        energy = NetworkCall(self.network)(t.expand(x.shape[0]), x, cond)
        if energy.shape not in ((x.shape[0],), (x.shape[0], 1)):
            raise ValueError(
                f"the energy network returned shape {tuple(energy.shape)} for a batch of "
                f"{x.shape[0]}; expected one energy for each sample, ({x.shape[0]},)"
            )
        return energy.reshape(-1)

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = x if differentiable and x.requires_grad else leaf_copy(x)
            cond = {key: leave_inference_mode(value) for key, value in cond.items()}
            energy = self._energy(leave_inference_mode(t), point, cond).sum()
            record_vjps(len(x))
            (gradient,) = torch.autograd.grad(energy, point, create_graph=differentiable)
        sde = self._gaussian()
        alpha, sigma = per_sample(sde.alpha(t), x), per_sample(sde.sigma(t), x)
        return (x - sigma.square() * gradient) / alpha, sigma * gradient
