"""Calls of a user's network, which shares no tensor with its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sde_models._utils.conditions import copied
from sde_models._utils.dependence import value_with_graph


class NetworkCall:
    """A network, called as ``network(t, x, **cond)``.

    Inputs are cast to the dtype of the network, and its output to that of the state. Both are
    copied: the network may change its inputs in place and return a tensor that it keeps. Its dtype
    is looked up once.

    Where a derivative with respect to x is taken, the original of a compiled network is called:
    torch compiles no second derivatives, and a compiled product can be taken only once.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self.compiled = hasattr(network, "_orig_mod")

    def __call__(self, t: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """Call the network.

        Args:
            t: Times, shape ``(B,)``.
            x: State, shape ``(B, *event)``.
            cond: Conditions by name.

        Raises:
            TypeError: If the network does not return a tensor.
            ValueError: If it cuts the graph where a derivative with respect to x is needed.
        """
        dtype = x.dtype if self.dtype is None else self.dtype
        network: Any = self.network
        if self.compiled and x.requires_grad and torch.is_grad_enabled():
            network = network._orig_mod

        def call(given: Tensor) -> Any:
            return network(t.to(dtype, copy=True), given, **copied(cond))

        try:
            output = value_with_graph(call, x, dtype)
        except TypeError as error:
            error.add_note("the network is called as network(t, x, **cond), with t of shape (B,)")
            raise
        if not isinstance(output, Tensor):
            refuse_output(output)
        return output.to(x.dtype, copy=True)


def call_network(network: nn.Module, t: Tensor, x: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """Call a network once, as :class:`NetworkCall` does."""
    return NetworkCall(network)(t, x, cond)


def check_shape(output: Tensor, x: Tensor) -> Tensor:
    """Return an output that has the shape of ``x``.

    Raises:
        ValueError: If it has another shape.
    """
    if output.shape != x.shape:
        raise ValueError(
            f"the network returned {tuple(output.shape)} for x of shape {tuple(x.shape)}; it "
            "is called as network(t, x, **cond) and must return the shape of x"
        )
    return output


def refuse_output(output: Any) -> NoReturn:
    """Raise TypeError for a network that returns no tensor."""
    hint = "it must return a tensor"
    if isinstance(getattr(output, "sample", None), Tensor):
        hint = "wrap it so that it returns the .sample of that"
    elif isinstance(output, tuple):
        hint = "wrap it so that it returns the first entry"
    raise TypeError(f"the network returned a {type(output).__name__}: {hint}")
