"""Calling a user's network, and refusing what would spoil the answer without a word."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class NetworkCall:
    """A network made ready to be called as ``network(t, x, **cond)``.

    A network in half precision is given half-precision inputs, and its output comes back in the
    dtype of the state, which stays in single or double precision. The network's dtype is looked up
    here, once.

    A compiled network is called as it was before where a derivative with respect to x is taken:
    torch compiles no second derivatives, and lets a compiled product be taken once.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        self.half = self.dtype in HALF
        # Replayed as a CUDA graph it writes each output over the last, which a solver may keep.
        self.compiled = hasattr(network, "_orig_mod")

    def __call__(self, t: Tensor, x: Tensor, cond: dict[str, Any]) -> Tensor:
        """Call the network.

        Args:
            t: Times, shape ``(B,)``.
            x: State, shape ``(B, *event)``.
            cond: Conditioning by name.

        Raises:
            TypeError: If the network does not return a tensor, or its dtype is not that of x.
            ValueError: If it changes x in place or cuts the graph where a derivative is wanted.
        """
        own = self.dtype
        given, half = x, False
        if own is not None and own != x.dtype:
            half = self.half and x.dtype not in HALF
            if not half:
                raise TypeError(
                    f"x is {x.dtype} and the network {own}: use x.to({own}) or model.to({x.dtype})"
                )
            given, t = x.to(own), t.to(own)
        differentiated = x.requires_grad and torch.is_grad_enabled()
        network: Any = self.network
        if self.compiled and differentiated:
            network = network._orig_mod
        before = None if given.is_inference() else given._version
        try:
            output = network(t, given, **cond)
        except TypeError as error:
            error.add_note("the network is called as network(t, x, **cond), with t of shape (B,)")
            raise
        if not isinstance(output, Tensor):
            refuse_output(output)
        if before is not None and given._version != before:
            raise ValueError(
                "the network changed its input x in place (an inplace=True activation?), which "
                "would spoil the solver's state: use inplace=False, or x.clone() first"
            )
        if own is not None and differentiated and not output.requires_grad:
            raise ValueError(
                "the network cuts the graph (no_grad or detach in its forward?), but a derivative "
                "with respect to x is wanted, as log_prob and gradients do"
            )
        if self.compiled:
            output = output.clone()
        return output.to(x.dtype) if half else output


def call_network(network: nn.Module, t: Tensor, x: Tensor, cond: dict[str, Any]) -> Tensor:
    """Call a network once, as :class:`NetworkCall` does."""
    if torch.compiler.is_compiling():
        return network(t, x, **cond)
    return NetworkCall(network)(t, x, cond)


def check_shape(output: Tensor, x: Tensor) -> Tensor:
    """Return an output that has the shape of ``x``.

    Raises:
        ValueError: If it has another.
    """
    if output.shape != x.shape:
        raise ValueError(
            f"the network returned {tuple(output.shape)} for x of shape {tuple(x.shape)}; it "
            "is called as network(t, x, **cond) and must return the shape of x"
        )
    return output


def refuse_output(output: Any) -> NoReturn:
    """Say what to do about a network that returns no tensor."""
    hint = "it must return a tensor"
    if isinstance(getattr(output, "sample", None), Tensor):
        hint = "wrap it so that it returns the .sample of that"
    elif isinstance(output, tuple):
        hint = "wrap it so that it returns the first entry"
    raise TypeError(f"the network returned a {type(output).__name__}: {hint}")
