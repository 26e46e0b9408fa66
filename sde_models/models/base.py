r"""Models: a forward SDE and something that gives the score of its densities.

Every model answers for :math:`\nabla \log p_t(x)`; those on a
:class:`~sde_models.GaussianSDE` also for eps, x0 and v, which are the same thing in other units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sde_models._utils.shapes import (
    Time,
    as_time,
    check_event_shape,
    check_floating,
    per_sample,
)
from sde_models.data.dequantization import check_data_range
from sde_models.models.nodes import ModelNodes
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE


class Model(nn.Module, ABC):
    """Base class: the score of a diffused density.

    A subclass on a :class:`~sde_models.GaussianSDE` defines :meth:`denoise`. Time comes first,
    as a number, a scalar tensor or one time for each sample.

    Args:
        sde: The forward SDE whose densities these are.
        event_shape: Shape of one sample, if the model takes only one; else None.

    Attributes:
        data_range: Lowest and highest number of the data, if known: what pictures draw black and
            white, and what :func:`~sde_models.bits_per_dim` spreads levels over. It may be set.
    """

    _data_range: tuple[float, float] | None = None

    def __init__(self, sde: SDE, event_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        _check_sde(sde)
        self.sde = sde
        self.event_shape = None if event_shape is None else tuple(event_shape)

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Lowest and highest number of the data, if known."""
        return self._data_range

    @data_range.setter
    def data_range(self, given: Sequence[float] | None) -> None:
        self._data_range = None if given is None else check_data_range(given)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters and buffers, torch's default if there are none."""
        return next((v.dtype for v in self._tensors()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Device of the parameters and buffers, torch's default if there are none."""
        return next((v.device for v in self._tensors()), torch.get_default_device())

    def _tensors(self) -> Iterator[Tensor]:
        return (v for v in chain(self.parameters(), self.buffers()) if v.is_floating_point())

    @abstractmethod
    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """Return the estimates (x0, eps) from one evaluation; inputs are not checked."""

    def at_nodes(self, times: Tensor, like: Tensor, cond: dict[str, Any]) -> ModelNodes:
        """This model at times known beforehand, with what depends on them alone computed once.

        Args:
            times: Model times as :meth:`GaussianSDE.times` makes them, shape ``(K,)``.
            like: State whose dtype and device the solve has.
            cond: Conditioning by name.
        """
        return ModelNodes(self, times, like, cond)

    def _checked(self, t: Time, x: Tensor) -> Tensor:
        check_floating(x)
        check_event_shape(x, self.event_shape)
        t = as_time(t, x)
        per_sample(t, x)
        if not torch.compiler.is_compiling():
            self.sde.check_times(t)
        return t

    def score(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        r"""Score :math:`\nabla_x \log p_t(x) = -\hat\epsilon / \sigma_t`.

        Args:
            t: Time in ``[t_min, t_max]``, scalar or ``(B,)``.
            x: Noised samples, shape ``(B, *event)``.
            **cond: Handed to the network.

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If a shape does not fit or a time is out of range.
        """
        t = self._checked(t, x)
        eps = self.denoise(t, x, **cond)[1]
        return -eps / per_sample(self._gaussian().sigma(t), x)

    def eps(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        r"""Predicted noise :math:`\hat\epsilon = E[\epsilon | x_t]`; arguments as in score."""
        return self.denoise(self._checked(t, x), x, **cond)[1]

    def x0(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        r"""Denoised sample :math:`\hat x_0 = E[x_0 | x_t]`; arguments as in score."""
        return self.denoise(self._checked(t, x), x, **cond)[0]

    def v(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        r"""Velocity :math:`\alpha\hat\epsilon - \sigma\hat x_0`; arguments as in score."""
        t = self._checked(t, x)
        x0, eps = self.denoise(t, x, **cond)
        sde = self._gaussian()
        return per_sample(sde.alpha(t), x) * eps - per_sample(sde.sigma(t), x) * x0

    def _gaussian(self) -> GaussianSDE:
        if not isinstance(self.sde, GaussianSDE):
            raise TypeError(
                f"{type(self.sde).__name__} has no alpha and sigma, so eps, x0 and v do not "
                "exist; use score with prediction='score', or subclass GaussianSDE"
            )
        return self.sde


def check_model(model: Any) -> None:
    """Refuse what is not a model.

    Raises:
        TypeError: Saying how to make a model of what was given.
    """
    if isinstance(getattr(model, "_orig_mod", model), Model):  # torch.compile wraps
        return
    hint = "sm.ScoreModel(network, sde) makes one of a network"
    if hasattr(model, "score_model"):
        hint = "use mixture.score_model(sde)"
    elif isinstance(getattr(model, "model", None), Model):
        hint = "it is made of one: give its .model"
    raise TypeError(f"wanted a model, got {type(model).__name__}: {hint}")


def _check_sde(sde: Any) -> None:
    if not isinstance(sde, SDE):
        given = f"the class {sde.__name__}" if isinstance(sde, type) else type(sde).__name__
        raise TypeError(f"sde must be an SDE such as sm.VPSDE(), got {given}")
    sde.check_keeps_times()


def check_network(network: Any) -> nn.Module:
    """Return a network; refuse what has no parameters to move, to train and to save.

    Raises:
        TypeError: Saying how to make a module of it.
    """
    if isinstance(network, nn.Module):
        return network
    given = f"the class {network.__name__}" if isinstance(network, type) else f"{network!r}"
    hint = (
        "make one of it, such as Network()"
        if isinstance(network, type)
        else (
            "write it as the forward(self, t, x) of a module, so that its parameters are trained, "
            "moved and saved with the model"
        )
    )
    raise TypeError(f"network must be a torch.nn.Module, got {given}: {hint}")
