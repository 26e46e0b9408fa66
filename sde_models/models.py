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

from sde_models._shapes import (
    Time,
    as_time,
    check_event_shape,
    check_floating,
    leaf_copy,
    per_sample,
)
from sde_models.base_sdes import SDE
from sde_models.conditioning import usable
from sde_models.counting import record
from sde_models.data.dequantization import check_data_range
from sde_models.gaussian_sdes import GaussianSDE
from sde_models.model_nodes import ModelNodes, NetworkNodes
from sde_models.network_calls import call_network, check_shape
from sde_models.predictions import Prediction, find_prediction


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


class ScoreModel(Model):
    """A network and the SDE it was trained for.

    The network is called as ``network(t, x, **cond)`` with ``t`` of shape ``(B,)`` and must
    return the shape of ``x``. It is called in its own dtype, whatever that of the state, with
    copies that it may change in place; preconditioning is computed in that of the state.

    Args:
        network: Any ``torch.nn.Module`` with that call.
        sde: Forward SDE. On an :class:`~sde_models.SDE` without a Gaussian kernel only
            ``prediction="score"`` has a meaning.
        prediction: What the network's output stands for: "eps", "x0", "v" or "score".
        preconditioning: "edm" scales input, output and time as in Karras et al. 2022. The
            output then is the residual of x0, and ``prediction`` is left out.
        event_shape: Shape of one sample; given, another shape is refused at the door.
        data_range: Lowest and highest number of the data it is trained on, which is kept with it:
            what pictures draw black and white, and what :func:`~sde_models.bits_per_dim` spreads
            levels over. None, for not known, stands for -1 and 1 there.

    Raises:
        ValueError: For unknown names, a combination without a meaning, or an empty range.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = ScoreModel(network, sm.VPSDE(), prediction="v")
        >>> model.score(0.5, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        prediction: str | None = None,
        *,
        preconditioning: str | None = None,
        event_shape: tuple[int, ...] | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(sde, event_shape)
        self.network = _check_network(network)
        self.data_range = data_range
        data_std = getattr(sde, "data_std", 1.0)
        self.prediction: Prediction = find_prediction(prediction, preconditioning, data_std)
        self.predicts_score = prediction == "score"
        if not isinstance(sde, GaussianSDE) and not self.predicts_score:
            raise ValueError(
                f"{type(sde).__name__} has no alpha and sigma, so only prediction='score' has a "
                f"meaning; got prediction={prediction!r}, preconditioning={preconditioning!r}"
            )

    def score(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        if not self.predicts_score:
            return super().score(t, x, **cond)
        t = self._checked(t, x)
        return self._run(t.expand(x.shape[0]), x, **cond)

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._scales(t, x)
        output = self._run(*self._network_input(t, x, alpha, sigma), **cond)
        return self.prediction.denoise(output, x, alpha, sigma)

    def at_nodes(self, times: Tensor, like: Tensor, cond: dict[str, Any]) -> ModelNodes:
        if type(self).denoise is not ScoreModel.denoise:  # a subclass has a say in the estimates
            return super().at_nodes(times, like, cond)
        return NetworkNodes(self, times, like, cond)

    def output(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The network's own output at noised samples, as a loss compares it to a target."""
        return self._run(*self._network_input(t, x, *self._scales(t, x)), **cond)

    def target(self, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """What :meth:`output` should be where data ``x0`` met noise ``eps``."""
        return self.prediction.target(x0, eps, *self._scales(t, x0))

    def _scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        sde = self._gaussian()
        return per_sample(sde.alpha(t), x), per_sample(sde.sigma(t), x)

    def _network_input(
        self, t: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.prediction.network_input(t.expand(x.shape[0]), x, alpha, sigma)

    def _run(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        record(nfe=1, rows=len(x))
        return check_shape(call_network(self.network, t, x, cond), x)


class EnergyModel(Model):
    r"""A network whose output is an energy: :math:`\nabla \log p_t(x) = -\nabla_x E(t, x)`.

    The score is a gradient by construction. Each evaluation costs a forward pass and a
    vector-Jacobian product.

    Args:
        network: Called as ``network(t, x, **cond)`` with ``t`` of shape ``(B,)``; returns one
            energy for each sample, shape ``(B,)`` or ``(B, 1)``.
        sde: Forward SDE with a Gaussian kernel.
        event_shape: Shape of one sample; given, another shape is refused at the door.

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
        super().__init__(sde, event_shape)
        self._gaussian()
        self.network = _check_network(network)

    def energy(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        """Energy of each sample, shape ``(B,)``, defined up to a function of time."""
        return self._energy(self._checked(t, x), x, **cond)

    def _energy(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        record(nfe=1, rows=len(x))
        energy = call_network(self.network, t.expand(x.shape[0]), x, cond)
        if energy.shape not in ((x.shape[0],), (x.shape[0], 1)):
            raise ValueError(
                f"the energy network returned shape {tuple(energy.shape)} for a batch of "
                f"{x.shape[0]}; wanted one energy for each sample, ({x.shape[0]},)"
            )
        return energy.reshape(-1)

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = x if differentiable and x.requires_grad else leaf_copy(x)
            cond = {key: usable(value) for key, value in cond.items()}
            energy = self._energy(usable(t), point, **cond).sum()
            record(vjps=1)
            (gradient,) = torch.autograd.grad(energy, point, create_graph=differentiable)
        sde = self._gaussian()
        alpha, sigma = per_sample(sde.alpha(t), x), per_sample(sde.sigma(t), x)
        return (x - sigma.square() * gradient) / alpha, sigma * gradient


def _check_network(network: Any) -> nn.Module:
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
