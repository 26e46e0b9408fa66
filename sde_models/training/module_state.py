"""What a network holds beside the parameters that learn, and that training must not lose."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sde_models.models import Model
from sde_models.training.progress import AnyModel

Buffers = Mapping[str, tuple[Tensor, bool]]
"""Tensors by name, each with whether it is in the state dictionary."""


def check_trainable(model: nn.Module) -> None:
    """Refuse a model whose state could not be averaged and kept.

    Raises:
        ValueError: Naming a parameter or buffer without a shape, or a module with a state that is
            no tensor.
    """
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(value):
            raise ValueError(
                f"{name} has no shape before the first call (a lazy module): call the model once "
                "before fit, as in model.eps(0.5, x)"
            )
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"{name} ({type(module).__name__}) has an extra state (get_extra_state), which "
                "fit can neither average nor keep: hold it in buffers"
            )


def check_same_parameters(before: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a model that does not have the parameters that it had.

    Raises:
        ValueError: Naming the first that is new, missing or another tensor.
    """
    now = dict(model.named_parameters())
    for name in [*before, *now]:
        if before.get(name) is not now.get(name):
            what = "made" if name not in before else "replaced" if name in now else "removed"
            raise ValueError(
                f"the network {what} its parameter {name} in training, and the optimiser has only "
                "those of the start: make all parameters in the constructor, and change them in "
                "place"
            )


def copy_model(model: AnyModel) -> AnyModel:
    """A copy with memory of its own; what hooks compute from weights is cut from the graph.

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


def find_buffers(model: nn.Module) -> Buffers:
    """All buffers by name, each with whether it is in the state dictionary."""
    return {
        f"{path}.{name}".lstrip("."): (value, name not in part._non_persistent_buffers_set)
        for path, part in model.named_modules()
        for name, value in part._buffers.items()
        if value is not None
    }


@torch.no_grad()
def copy_buffers(buffers: Buffers, model: Model) -> None:
    """Give a model these buffers and no others, in place where it has one of that shape."""
    there = find_buffers(model)
    for name, (value, persistent) in buffers.items():
        own = there[name][0] if name in there else None
        if own is not None and _takes(own, value):
            own.copy_(value)
        else:
            device = model.device if own is None else own.device
            module, leaf = _place(name, model)
            module.register_buffer(leaf, value.detach().to(device, copy=True), persistent)
    for name in there.keys() - buffers.keys():
        module, leaf = _place(name, model)
        module._buffers[leaf] = None


def _takes(own: Tensor, value: Tensor) -> bool:
    same = own.shape == value.shape and own.dtype == value.dtype
    return same and own.is_contiguous() and not own.is_inference()


def _place(name: str, model: nn.Module) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
