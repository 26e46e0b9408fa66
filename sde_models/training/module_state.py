"""State of a network that averaging and checkpoints must keep, besides its parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sde_models._utils.buffers import copy_buffers, find_parts
from sde_models.training.progress import AnyModel


def check_trainable(model: nn.Module) -> None:
    """Refuse a model whose state could not be averaged and kept.

    Raises:
        ValueError: For a parameter or buffer without a shape or made in inference mode, and for a
            module with an extra state, by name; or if no parameter needs a gradient.
    """
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(value):
            raise ValueError(
                f"{name} has no shape before the first call (a lazy module): call the model once "
                "before fit, as in model.eps(0.5, x)"
            )
        if value.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode and cannot have a gradient: make the "
                "model outside of it"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model requires a gradient, so there is nothing to train: call "
            "model.requires_grad_(), or that of the parts to be trained"
        )
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"{name} ({type(module).__name__}) has an extra state (get_extra_state), which "
                "fit can neither average nor keep: hold it in buffers"
            )


def find_parameters(model: nn.Module) -> dict[str, Tensor]:
    """All parameters by name, tied ones under each of their names."""
    return {
        path + name: value
        for part, path in find_parts(model).items()
        for name, value in part._parameters.items()
        if value is not None
    }


def check_same_parameters(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Refuse a model whose parameters are not those it had before.

    Raises:
        ValueError: With the name of the first that is new, missing or another tensor.
    """
    for name in [*before, *(now.keys() - before.keys())]:
        if before.get(name) is not now.get(name):
            what = "made" if name not in before else "replaced" if name in now else "removed"
            raise ValueError(
                f"the network {what} its parameter {name} in training, and the optimiser has the "
                "parameters of the start: make all parameters in the constructor, and change them "
                "in place"
            )


Mark = list[tuple[Any, Any]]
"""The tensors, arrays and floats in an attribute, each with what changes if it changes in place."""


def find_attributes(model: nn.Module) -> dict[str, Mark]:
    """Tensors, arrays and floats in plain attributes; not those that come from weights."""
    return {
        path + name: mark
        for part, path in find_parts(model).items()
        for name, value in vars(part).items()
        if not name.startswith("_") and (mark := _mark(value))
    }


def _mark(value: Any) -> Mark:
    if isinstance(value, Tensor):
        own = not value.requires_grad and not value.is_inference()
        return [(value, value._version)] if own else []
    if isinstance(value, np.ndarray):
        return [(None, value.tobytes())]
    if isinstance(value, float):
        return [(None, repr(value))]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [inner for entry in value for inner in _mark(entry)]


def _differ(before: Mark, now: Mark) -> bool:
    return len(before) != len(now) or any(
        one is not other or version != new
        for (one, version), (other, new) in zip(before, now, strict=True)
    )


def warn_of_attributes(before: Mapping[str, Mark], model: nn.Module) -> None:
    """Warn of plain attributes that have changed: neither copied nor kept."""
    now = find_attributes(model)
    changed = [name for name, mark in before.items() if name in now and _differ(mark, now[name])]
    if changed:
        warnings.warn(
            f"plain attributes changed in training ({', '.join(changed)}): the averaged "
            "model and the checkpoints hold their first values; if the network reads them, make "
            "them buffers by register_buffer",
            UserWarning,
            stacklevel=2,
        )


def copy_model(model: AnyModel) -> AnyModel:
    """A copy with its own memory; tensors that hooks compute from weights are detached.

    Raises:
        TypeError: If a part of the model cannot be copied.
    """
    held = chain.from_iterable(
        chain(vars(part).values(), part._buffers.values()) for part in model.modules()
    )
    # Such as the weight of torch.nn.utils.weight_norm, which deepcopy refuses.
    inner = [v for v in held if isinstance(v, Tensor) and not v.is_leaf]
    try:
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in inner})
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"the model cannot be copied ({error}), and the averaged weights need a copy: keep "
            "what copy.deepcopy refuses out of its attributes"
        ) from error


def load_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], transient: Mapping[str, Tensor]
) -> None:
    """Put back all parameters and buffers of a model, whatever shapes its buffers have.

    Args:
        model: The model.
        tensors: Those of its state dictionary.
        transient: The buffers that are not in the state dictionary.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {name: value for name, value in tensors.items() if name not in transient}
    buffers = {name: (value, True) for name, value in state.items() if name not in parameters}
    copy_buffers(buffers | {name: (value, False) for name, value in transient.items()}, model)
    model.load_state_dict(state)
