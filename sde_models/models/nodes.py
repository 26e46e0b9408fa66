"""A model at the nodes of a time grid, for solvers that know their nodes beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_models._utils.conditions import copied
from sde_models._utils.user_networks import NetworkCall, check_shape
from sde_models.sdes.system import AtNode, add_scaled, as_coefficients, linear_sum


class ModelNodes:
    """Any model at the nodes: its estimates, and weighted sums of them.

    Args:
        model: The model.
        times: Model times in double precision, shape ``(K,)``.
        like: State whose dtype and device the solve has.
        cond: Conditions by name.
    """

    def __init__(self, model: Any, times: Tensor, like: Tensor, cond: Mapping[str, Any]) -> None:
        self.model = model
        self.cond = cond
        self._times, self._like = times, like

    @cached_property
    def t(self) -> tuple[Tensor, ...]:
        """Each node as a scalar tensor like the state."""
        return self._times.to(self._like).unbind()

    def denoise(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x0, eps) at node ``k``."""
        x0, eps = self.model.denoise(self.t[k].clone(), x.clone(), **copied(self.cond))
        return x0.clone(), eps.clone()

    def x0(self, k: int, x: Tensor) -> Tensor:
        """The estimate of x0 alone."""
        return self.denoise(k, x)[0]

    def weighted(self, of_x0: Tensor, of_eps: Tensor) -> AtNode:
        """The function that gives of_x0 x0 + of_eps eps, with a weight for each node."""
        a, b = as_coefficients(of_x0), as_coefficients(of_eps)

        def estimate(k: int, x: Tensor) -> Tensor:
            x0, eps = self.denoise(k, x)
            return add_scaled(x0 * a[k], b[k], eps)

        return estimate


class NetworkNodes(ModelNodes):
    """A network at the nodes: its estimates are linear in state and output, and so are their sums.

    The model is a :class:`~sde_models.ScoreModel`; the other arguments are as above.
    """

    def __init__(self, model: Any, times: Tensor, like: Tensor, cond: Mapping[str, Any]) -> None:
        super().__init__(model, times, like, cond)
        prediction, sde = model.prediction, model.sde
        scales = [getattr(sde, name)(times) for name in prediction.scales]
        alpha, sigma = scales[:2]
        scale = prediction.input_scale(alpha, sigma)
        self._shrink = None if scale is None else as_coefficients(1 / scale)
        clock = prediction.clock(times, alpha, sigma).to(like)
        self._clocks = clock[:, None].expand(-1, like.shape[0]).unbind()
        self._call = NetworkCall(model.network)
        itself = torch.zeros_like(alpha), torch.ones_like(alpha)
        self._factors = [factors or itself for factors in prediction.factors(*scales)]
        self._x0, self._eps = (_Linear(*factors) for factors in self._factors)

    def _output(self, k: int, x: Tensor) -> Tensor:
        rows, clock = x.shape[0], self._clocks[k]
        if rows != clock.shape[0]:  # samples that are done have left the batch
            clock = clock[:1].expand(rows)
        shown = x if self._shrink is None else x * self._shrink[k]
        return check_shape(self._call(clock, shown, self.cond), x)

    def denoise(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        output = self._output(k, x)
        return self._x0(k, x, output), self._eps(k, x, output)

    def x0(self, k: int, x: Tensor) -> Tensor:
        return self._x0(k, x, self._output(k, x))

    def weighted(self, of_x0: Tensor, of_eps: Tensor) -> AtNode:
        both = zip(*self._factors, strict=True)
        total = _Linear(*(of_x0 * in_x0 + of_eps * in_eps for in_x0, in_eps in both))
        return lambda k, x: total(k, x, self._output(k, x))


class _Linear:
    """At each node a factor of the state and one of the output."""

    def __init__(self, of_state: Tensor, of_output: Tensor) -> None:
        self._of_state, self._of_output = as_coefficients(of_state), as_coefficients(of_output)
        self._output_itself = set(self._of_state) == {0.0} and set(self._of_output) == {1.0}

    def __call__(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        if self._output_itself:
            return output
        return linear_sum(self._of_state[k], x, (self._of_output[k],), (output,))
