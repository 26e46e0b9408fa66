r"""Base class of trace estimators, and vector-Jacobian products, counted and in chunks.

A Jacobian :math:`J` and its transpose have the same trace, so products :math:`J^\top v` suffice.
Every network has those, while fused attention has no forward-mode derivative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_models._utils.counting import record_vjps
from sde_models._utils.shapes import check_not_empty, leaf_copy
from sde_models._utils.standard_errors import standard_error
from sde_models._utils.user_networks import value_with_graph
from sde_models.divergence.complement import Complement

Field = Callable[[Tensor], Tensor]
MOST_NUMBERS = 2**18
"""Numbers that go through the network's derivative at once: 85 images of 3 x 32 x 32, for which a
U-Net of 60 million weights needs 7 GB."""


class Products:
    r"""The products :math:`(J - c I)^\top v` of a field at a batch of points.

    Args:
        value: The field at the points, with a graph to them.
        point: The points, shape ``(B, *event)``.
        isotropic: c, a number or shape ``(B,)``.
        differentiable: Whether products carry a graph.
        complement: Directions to leave out, if any.
    """

    def __init__(
        self,
        value: Tensor,
        point: Tensor,
        isotropic: Tensor | float,
        differentiable: bool,
        complement: Complement | None = None,
    ) -> None:
        self._complement = complement
        self._value, self._point, self._differentiable = value, point, differentiable
        self._isotropic = torch.as_tensor(
            isotropic, dtype=value.dtype, device=value.device
        ).reshape(-1, 1)

    @property
    def point(self) -> Tensor:
        """Where, without a graph; a copy."""
        return self._point.detach().clone()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Take products with flat vectors of shape ``(k, B, D)``, in chunks."""
        if self._complement is not None:
            return self._complement.restrict(self._chunks, vectors)
        return self._chunks(vectors)

    def _chunks(self, vectors: Tensor) -> Tensor:
        chunk = max(1, MOST_NUMBERS // vectors[0].numel())
        found = [self._products(part) for part in vectors.split(chunk)]
        products = found[0] if len(found) == 1 else torch.cat(found)
        return products - self._isotropic * vectors

    def _products(self, vectors: Tensor) -> Tensor:
        value, point = self._value, self._point
        record_vjps(len(vectors) * len(value))
        graph = {"retain_graph": True, "create_graph": self._differentiable}
        shaped = vectors.reshape(len(vectors), *value.shape)
        if len(vectors) == 1:
            return torch.autograd.grad(value, point, shaped[0], **graph)[0].reshape(vectors.shape)
        try:
            (products,) = torch.autograd.grad(value, point, shaped, is_grads_batched=True, **graph)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # An operation that this version of torch cannot batch: one at a time. Any other error
            # is raised again there.
            products = torch.stack(
                [torch.autograd.grad(value, point, vector, **graph)[0] for vector in shaped]
            )
        return products.reshape(vectors.shape)


@dataclass(frozen=True)
class TraceEstimate:
    """The trace at a batch of points.

    Attributes:
        estimates: Estimates whose mean is the trace, shape ``(B, probes)``.
        stderr: Standard error of that mean, shape ``(B,)``, without a graph; 0 if exact.
    """

    estimates: Tensor
    stderr: Tensor

    @property
    def value(self) -> Tensor:
        """The mean of the estimates, shape ``(B,)``."""
        return self.estimates.mean(1)


class Divergence(ABC):
    """Base class of trace estimators.

    Probes are drawn once for a solve by :meth:`draw`: drawn anew at each evaluation they would
    make the right-hand side of the equation a random function, on which an adaptive solver takes
    ever smaller steps.

    Attributes:
        probes: Number of estimates, whose mean is the trace.
        exact: Whether there is no error beyond rounding.
        without_replacement: Whether a function that draws probes by itself may take those of a
            sequence without replacement in place of independent ones.
    """

    probes: int = 1
    exact: bool = False
    without_replacement: bool = False

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw the probes for a batch ``(B, *event)``: shape ``(n, B, *event)``."""

    @abstractmethod
    def estimate(self, products: Products, drawn: Tensor | None) -> TraceEstimate:
        """Estimate the trace from products.

        Args:
            products: Gives the products with flat vectors ``(k, B, D)``.
            drawn: The probes, flat, shape ``(n, B, D)``.
        """

    @abstractmethod
    def count_products(self, size: int) -> int:
        """How many products an estimate takes for events of ``size`` numbers."""

    def spread_error(self, estimates: Tensor, size: int) -> Tensor:
        """Standard error of the mean of estimates ``(B, probes)`` by their spread, ``(B,)``.

        0 if exact, NaN for a single probe, which has no spread.
        """
        if self.exact:
            return torch.zeros_like(estimates[:, 0])
        return standard_error(estimates)

    def with_products(self, count: int) -> Divergence:
        """The same estimator with about so many products."""
        return self

    def check_size(self, size: int) -> None:  # noqa: B027 (most take any)
        """Refuse events of ``size`` numbers, if they are too large for this estimator.

        Raises:
            ValueError: With the cost, and what to use instead.
        """

    def __call__(
        self,
        field: Field,
        x: Tensor,
        drawn: Tensor | None,
        isotropic: Tensor | float = 0.0,
        complement: Complement | None = None,
    ) -> tuple[Tensor, TraceEstimate]:
        """Evaluate a field and its divergence.

        Args:
            field: Function from ``(B, *event)`` to the same shape, sample by sample.
            x: Where, shape ``(B, *event)``.
            drawn: What :meth:`draw` returned.
            isotropic: Factor c of a multiple c I of the identity near the Jacobian, a number or
                shape ``(B,)``: its trace is known, and only the rest is estimated.
            complement: Leaves out directions: the trace of the rest is estimated.

        Returns:
            The field, shape of ``x``, and the trace. They carry a graph if gradients are enabled.

        Raises:
            ValueError: If the event is too large for the estimator.
        """
        check_not_empty(x)
        size = x[0].numel()
        self.check_size(size)
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = x if differentiable and x.requires_grad else leaf_copy(x)
            value = value_with_graph(field, point)
            products = Products(value, point, isotropic, differentiable, complement)
            found = self.estimate(products, None if drawn is None else drawn.flatten(2).clone())
            known = size * torch.as_tensor(isotropic, dtype=x.dtype, device=x.device).reshape(-1, 1)
            trace = TraceEstimate(found.estimates + known, found.stderr.detach())
        return (value if differentiable else value.detach()), trace


def quadratic_forms(vectors: Tensor, products: Tensor) -> Tensor:
    """The forms ``(B, k)`` of vectors and their products, both ``(k, B, D)``."""
    return (vectors * products).sum(2).T


def exact_trace(products: Products, chunk: int, probes: int = 1) -> TraceEstimate:
    """The trace from a product with each basis vector, as so many equal estimates."""
    x = products.point.flatten(1)
    batch, size = x.shape
    trace = x.new_zeros(batch)
    for first in range(0, size, chunk):
        count = min(chunk, size - first)
        basis = x.new_zeros(count, size)
        basis[:, first : first + count].fill_diagonal_(1)
        found = products(basis[:, None].expand(-1, batch, -1))
        trace = trace + found[:, :, first : first + count].diagonal(dim1=0, dim2=2).sum(1)
    return TraceEstimate(trace[:, None].expand(-1, probes), torch.zeros_like(trace.detach()))
