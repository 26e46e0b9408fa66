"""Class labels that condition a network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor


def as_labels(label: Tensor | int | None, classes: int | None, like: Tensor) -> Tensor | None:
    """Check labels and give one to each sample; ``classes`` stands for no label.

    Args:
        label: Class of each sample, an integer or shape ``(B,)``, from 0 to ``classes``; None for
            no label.
        classes: Number of classes; None for a network without, which gets None.
        like: A tensor with the shape ``(B,)`` and the device of the result.

    Raises:
        TypeError: If a label is not an integer, or the network has no classes.
        ValueError: If the shape does not fit or a label is out of range.
    """
    if classes is None:
        if label is not None:
            raise TypeError("label given to a network without classes: make it with classes=")
        return None
    label = classes if label is None else label
    number = isinstance(label, int) and not isinstance(label, bool)
    # Filled there: a number that is copied to an accelerator makes the host wait for it.
    make = partial(torch.full, ()) if number else torch.as_tensor
    labels = make(label, device=like.device)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(
            f"label must hold integers, shape {tuple(like.shape)}, got dtype {labels.dtype}"
        )
    if labels.ndim and labels.shape != like.shape:
        raise ValueError(
            f"label must be one integer or have shape {tuple(like.shape)}, got "
            f"{tuple(labels.shape)}"
        )
    if not torch.compiler.is_compiling():
        low, high = (label, label) if number else torch.stack(torch.aminmax(labels)).tolist()
        if low < 0 or high > classes:
            raise ValueError(
                f"labels must lie from 0 to {classes}, where {classes} is no label; got labels "
                f"from {low} to {high}"
            )
    return labels.expand(like.shape)
