r"""Models: a forward SDE and something that gives the score of its densities.

Every model gives :math:`\nabla \log p_t(x)`; those on a :class:`~sde_models.GaussianSDE` also give
eps, x0 and v, which are linear functions of the score and x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sde_models._utils.conditions import by_name, leave_inference_mode
from sde_models._utils.integers import check_integers
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
        data_range: Lowest and highest number of the data, if known: black and white in pictures,
            and the range of the levels of :func:`~sde_models.bits_per_dim`. It may be set.
    """

    described_apart = frozenset({"_data_range"})
    """Attributes that few results depend on, which name them among their settings."""

    _data_range: tuple[float, float] | None = None

    def __init__(self, sde: SDE, event_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        _check_sde(sde)
        self.sde = sde
        self.event_shape = (
            None if event_shape is None else check_integers("event_shape", event_shape)
        )

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

    def at_nodes(self, times: Tensor, like: Tensor, cond: Mapping[str, Any]) -> ModelNodes:
        """This model at times known beforehand, with what depends on them alone computed once.

        Args:
            times: Model times as :meth:`GaussianSDE.times` makes them, shape ``(K,)``.
            like: State whose dtype and device the solve has.
            cond: Conditions by name.
        """
        return ModelNodes(self, times, like, cond)

    def output(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The network's own output at noised samples, as a loss compares it to a target.

        Raises:
            TypeError: If the model is not a :class:`~sde_models.ScoreModel`.
        """
        raise TypeError(
            f"weighting='output' compares the output of a ScoreModel's network, "
            f"{type(self).__name__} has none: use weighting='simple', 'edm', 'min-snr' or "
            "'likelihood'"
        )

    def target(self, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """The regression target of :meth:`output` for data ``x0`` with noise ``eps``."""
        raise TypeError(f"{type(self).__name__} has no output to compare with a target")

    def bind(self, /, **cond: Any) -> BoundModel:
        """The same model with conditions fixed, which all samples share.

        They are given to the network as they are, whatever their shape or type, in every call and
        with every number of samples. Tensors among them move with the bound model, and a
        ``torch.nn.Parameter`` is trained with it.

        Args:
            **cond: Conditions by name.

        Raises:
            ValueError: For the names of the arguments of every network: self, t and x.

        Example:
            >>> class Scaled(torch.nn.Module):
            ...     def forward(self, t, x, scales):
            ...         return x * scales.prod()
            >>> model = sm.ScoreModel(Scaled(), sm.VPSDE()).bind(scales=torch.tensor([2.0, 0.5]))
            >>> model.eps(0.5, torch.ones(2, 3)).sum()
            tensor(6.)
        """
        return BoundModel(self, cond)

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TypeError: a model gives several functions of (t, x), each by its name."""
        raise TypeError("a model is not called itself: use its score, eps, x0 or v, as score(t, x)")

    def _checked(self, t: Time, x: Tensor) -> Tensor:
        if isinstance(t, Tensor) and t.ndim > 1:
            raise ValueError(
                f"arguments come as (t, x), with t a number, a scalar or of shape (B,); got shape "
                f"{tuple(t.shape)} for t"
            )
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
            **cond: Conditions, given to the network as they are.

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
        r"""The combination :math:`\alpha\hat\epsilon - \sigma\hat x_0`; arguments as in score."""
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


class BoundModel(Model):
    """A model with conditions that all samples share.

    Args:
        model: The model.
        cond: The conditions by name.

    Raises:
        TypeError: If a condition is given again where the model is used.
    """

    def __init__(self, model: Model, cond: Mapping[str, Any]) -> None:
        check_model(model)
        by_name(cond)
        super().__init__(model.sde, model.event_shape)
        self.model, self.names = model, tuple(cond)
        self.values: dict[str, Any] = {}
        self.data_range = model.data_range
        for name, value in cond.items():
            value = leave_inference_mode(value)
            if isinstance(value, nn.Parameter | nn.Module):
                setattr(self, f"bound_{name}", value)
            elif isinstance(value, Tensor):
                self.register_buffer(f"bound_{name}", value)
            else:  # no attribute, which named "dropout" would be taken for that of a layer
                self.values[name] = value

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self.model.denoise(t, x, **self._all(cond))

    def score(self, t: Time, x: Tensor, **cond: Any) -> Tensor:
        return self.model.score(t, x, **self._all(cond))

    def output(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        return self.model.output(t, x, **self._all(cond))

    def target(self, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        return self.model.target(t, x0, eps)

    def at_nodes(self, times: Tensor, like: Tensor, cond: Mapping[str, Any]) -> ModelNodes:
        return self.model.at_nodes(times, like, self._all(cond))

    def _all(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        for name in self.names:
            if name in cond:
                raise TypeError(
                    f"{name} is bound to this model: leave it out, or bind it anew to its .model"
                )
        return {**self.bound, **cond}

    @property
    def bound(self) -> dict[str, Any]:
        """What is bound, by name."""
        return {
            name: self.values[name] if name in self.values else getattr(self, f"bound_{name}")
            for name in self.names
        }

    def bind(self, /, **cond: Any) -> BoundModel:
        bound = BoundModel(self.model, self._all(cond))
        bound.data_range = self.data_range
        return bound

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.bound.items())


def check_model(model: Any) -> None:
    """Refuse what is not a model."""
    if isinstance(getattr(model, "_orig_mod", model), Model):  # torch.compile wraps
        return
    hint = "sm.ScoreModel(network, sde) makes one of a network"
    if isinstance(model, str | PathLike):
        hint = "sm.load_model(path) reads one from a file"
    elif hasattr(model, "score_model"):
        hint = "use mixture.score_model(sde)"
    elif isinstance(getattr(model, "model", None), Model):
        hint = "it is made of one: give its .model"
    given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise TypeError(f"expected a model, got {given}: {hint}")


def find_event_shape(model: Model, event_shape: Any) -> tuple[int, ...]:
    """The shape of a sample that was given, or that of the model if it is None.

    Raises:
        ValueError: If neither is known.
    """
    if event_shape is not None:
        return check_integers("event_shape", event_shape)
    if model.event_shape is None:
        raise ValueError(
            "this model takes any event shape: give event_shape=, such as (2,) for points in the "
            "plane or (3, 32, 32) for images"
        )
    return model.event_shape


def _check_sde(sde: Any) -> None:
    if not isinstance(sde, SDE):
        given = f"the class {sde.__name__}" if isinstance(sde, type) else type(sde).__name__
        raise TypeError(f"sde must be an SDE such as sm.VPSDE(), got {given}")
    sde.check_keeps_times()


def check_network(network: Any) -> nn.Module:
    """Return a network; refuse what is not a module."""
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
