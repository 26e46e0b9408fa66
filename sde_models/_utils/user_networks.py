"""A user's network: what it must be, and calls of it, which share no tensor with their caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import getattr_static, signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel

from sde_models._utils.conditions import copied
from sde_models._utils.counting import record_call
from sde_models._utils.integers import check_integers

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
"""What torch wraps around a network."""

MISTAKES = (TypeError, ValueError, IndexError, RuntimeError)
"""Errors of a network that was not written for the call that it gets."""

DROPS = "drops entries at random"
LEARNS = "changes with every call"


def check_is_function(model: nn.Module) -> None:
    """Refuse a model whose output for a sample depends on chance, on its batch or on the call.

    Refused in training mode are: layers of dropout, and those that hold its probability as a
    number (attention, recurrent layers, a user's ``self.attn_dropout = 0.1``); stochastic depth;
    randomised slopes; batch normalisation; instance normalisation that tracks its statistics; and
    spectral normalisation, whose weights move. Batch normalisation without running statistics is
    refused in any mode. A dropout whose probability no layer holds cannot be seen.

    Raises:
        ValueError: With the name of the layer, and what to do.
    """
    for name, module in model.named_modules():
        why = _no_function(module)
        if why is None:
            continue
        where, cure = f"{name or 'it'} ({type(module).__name__})", "call model.eval() first"
        if not module.training:
            cure = "give it track_running_stats=True, or use GroupNorm"
        mode = "training" if module.training else "evaluation"
        raise ValueError(
            f"the model is in {mode} mode, and {where} {why}, so that it is not one function of "
            f"(t, x): {cure}"
        )


def _no_function(module: nn.Module) -> str | None:
    """Why a layer is no function of t and x in the mode it is in; None if it is one."""
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        return "normalises over the batch: the output for a sample depends on the others"
    if not module.training:
        return None
    if isinstance(module, nn.RReLU) and module.lower != module.upper:
        return "draws its slopes at random"
    if isinstance(module, _InstanceNorm) and module.running_mean is not None:
        return LEARNS
    hooks = module._forward_pre_hooks.values()
    if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
        return LEARNS
    return DROPS if _drops(module) else None


def _drops(module: nn.Module) -> bool:
    """Whether a layer has a probability with which it drops something."""
    if isinstance(module, nn.RNNBase):  # between its layers only
        return module.dropout > 0 and module.num_layers > 1
    kind = str(getattr(module, "original_name", type(module).__name__)).lower()
    rates = {key: value for key, value in vars(module).items() if "drop" in key.lower()}
    # Looked up without the module's own __getattr__, which may warn; a scripted layer needs it.
    scripted = isinstance(module, torch.jit.ScriptModule)
    rates["dropout"] = (getattr if scripted else getattr_static)(module, "dropout", None)
    if "drop" in kind or "stochasticdepth" in kind:
        rates["p"] = getattr(module, "p", None)
    return any(_is_rate(value) for value in rates.values())


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1


def shape_of_network(
    network: nn.Module, given: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Shape of one sample, as given or as the network says it by an attribute ``event_shape``.

    Args:
        network: The network, also within those that torch wraps around it.
        given: Shape that the caller gave.

    Returns:
        The shape, or None if it is not known.

    Raises:
        ValueError: If the two differ, or what was given is no shape.
    """
    found = None if given is None else check_integers("event_shape", given)
    while isinstance(bare := getattr(network, "_orig_mod", network), WRAPPERS):
        network = bare.module
    own = getattr(network, "event_shape", None)
    if not isinstance(own, tuple) or not own or any(type(size) is not int for size in own):
        return found
    if found not in (None, tuple(own)):
        raise ValueError(
            f"event_shape {found} is not that of the network, {tuple(own)}: leave it out"
        )
    return tuple(own)


class NetworkCall:
    """A network, called as ``network(t, x, **cond)``.

    Inputs, and conditions that are floating tensors, are cast to the dtype of the network, and its
    output to that of the state. All are copied: the network may change its inputs in place and
    return a tensor that it keeps. Its dtype is looked up once. Each call is counted.

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
            record_call(len(given))
            try:
                return network(t.to(dtype, copy=True), given, **copied(cond, dtype))
            except MISTAKES as error:
                if not isinstance(error, torch.OutOfMemoryError):
                    error.add_note(_how_it_is_called(network))
                raise

        output = value_with_graph(call, x, dtype)
        if not isinstance(output, Tensor):
            refuse_output(output)
        return output.to(x.dtype, copy=True)


def _how_it_is_called(network: nn.Module) -> str:
    """For the error of a network: how it is called, and the conditions in its signature."""
    text = "the network is called as network(t, x, **cond), with t of shape (B,)"
    try:
        parameters = signature(getattr(network, "_orig_mod", network).forward).parameters
    except (TypeError, ValueError):  # of a scripted one
        return text
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return text
    return f"{text}, and its forward takes ({', '.join(parameters)})"


def check_shape(output: Tensor, x: Tensor) -> Tensor:
    """Return an output; refuse one that does not have the shape of ``x``."""
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


def value_with_graph(
    function: Callable[[Tensor], Any], x: Tensor, dtype: torch.dtype | None = None
) -> Any:
    """Evaluate a function at a copy of x, so that a derivative with respect to x can be taken.

    The function may change the copy. If x has no graph, nothing is checked. The value of a function
    that does not depend on x gets a graph along which its derivative is zero.

    Args:
        function: Of one tensor, sample by sample.
        x: Where, shape ``(B, *event)``.
        dtype: Of the copy; that of x if None.

    Raises:
        ValueError: If the value depends on x and its graph does not lead there, so that its
            derivative would be taken to be zero.
    """
    given = x.to(x.dtype if dtype is None else dtype, copy=True)
    node = given.grad_fn
    value = function(given)
    if node is None or not isinstance(value, Tensor) or _reaches(value, node):
        return value
    with torch.no_grad():
        elsewhere = function((1 + x.abs() + x).to(given.dtype))
    if not torch.allclose(elsewhere, value.detach(), rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "the network cuts the graph (no_grad or detach in its forward?), and log_prob "
            "and gradients need its derivative with respect to x: compute the output without them"
        )
    return value + 0 * x.sum().to(value.dtype)


def _reaches(value: Tensor, node: Any) -> bool:
    """Whether the graph of a value leads to a node."""
    stack, seen = [value.grad_fn], set()
    while stack:
        at = stack.pop()
        if at is node:
            return True
        if at is not None and at not in seen:
            seen.add(at)
            stack.extend(before for before, _ in at.next_functions)
    return False
