"""Inputs of a network for the time and a label: features of the clock, and a base class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sde_models._utils.arguments import NamesArguments, as_number
from sde_models._utils.integers import check_integer, check_integers


class FourierFeatures(nn.Module):
    r"""Sines and cosines of a clock, at fixed geometric frequencies.

    .. math:: \phi_{2k}(c) = \frac{\sin \omega_k c}{\sqrt{\omega_k}}, \quad
              \phi_{2k+1}(c) = \frac{\cos \omega_k c}{\sqrt{\omega_k}}, \quad
              \omega_k = \omega_{low} (\omega_{high} / \omega_{low})^{k / (K - 1)} .

    The clock of a :class:`~sde_models.ScoreModel` is t in [0, 1], or with EDM preconditioning
    a quarter of log(sigma / alpha), between about -2 and 2. The lowest frequency turns by a
    radian over either, the highest resolves a hundredth of it. Amplitudes fall with frequency,
    so that what is learned first is smooth in time and cheap for an adaptive solver.

    Args:
        count: Number of frequencies K; there are 2K features.
        lowest: Lowest angular frequency, radians per unit of the clock.
        highest: Highest angular frequency.

    Reference:
        Tancik et al. 2020, arXiv:2006.10739.

    Example:
        >>> FourierFeatures(8)(torch.zeros(3)).shape
        torch.Size([3, 16])
    """

    frequencies: Tensor

    def __init__(self, count: int = 16, *, lowest: float = 1.0, highest: float = 100.0) -> None:
        super().__init__()
        count = check_integer("count", count, least=2)
        lowest, highest = as_number("lowest", lowest), as_number("highest", highest)
        if not 0 < lowest < highest < math.inf:
            raise ValueError(
                f"frequencies must satisfy 0 < lowest < highest, got {lowest} and {highest}"
            )
        exponents = torch.linspace(math.log(lowest), math.log(highest), count)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, clock: Tensor) -> Tensor:
        """Features of shape ``(B, 2 count)`` of clock readings ``(B,)``."""
        angles = clock[:, None] * self.frequencies
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1)
        return (waves / self.frequencies.sqrt()[:, None]).flatten(1)


class TimeConditionedNetwork(NamesArguments, nn.Module):
    """Base class of networks with one embedding of the time and the label.

    Arguments are those of its subclasses, and ``embedding``, its size in units of the width.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int,
        depth: int,
        *,
        embedding: int,
        classes: int | None,
        frequencies: int,
    ) -> None:
        super().__init__()
        self.event_shape = check_integers("event_shape", event_shape)
        if not self.event_shape:
            raise ValueError("event_shape must hold at least one size, got ()")
        self.width, self.depth = check_integer("width", width), check_integer("depth", depth)
        self.classes = None if classes is None else check_integer("classes", classes)
        self.frequencies = check_integer("frequencies", frequencies, least=2)
        size = embedding * self.width
        self.clock = nn.Sequential(
            FourierFeatures(self.frequencies),
            nn.Linear(2 * self.frequencies, size),
            nn.SiLU(),
            nn.Linear(size, size),
        )
        # One embedding more than there are classes: the last one is that of no label.
        self.label = None if self.classes is None else nn.Embedding(self.classes + 1, size)
        self.activation = nn.SiLU()

    def embed(self, t: Tensor, x: Tensor, label: Tensor | int | None) -> Tensor:
        """The embedding of the clock and the label of each sample, shape ``(B, embedding)``."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, this network takes events of shape "
                f"{self.event_shape}"
            )
        embedding = self.clock(t)
        labels = as_labels(label, self.classes, t)
        if self.label is not None:
            embedding = embedding + self.label(labels)
        return self.activation(embedding)


def as_labels(label: Tensor | int | None, classes: int | None, like: Tensor) -> Tensor | None:
    """Check labels and give one to each sample; ``classes`` stands for no label.

    Args:
        label: Class of each sample, from 0 to ``classes``: an integer or one row that all share,
            or shape ``(B,)``; None for no label.
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
    try:
        labels = make(label, device=like.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"label must hold integers from 0 to {classes}, shape {tuple(like.shape)}, got "
            f"{label!r}"
        ) from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"label must hold integers, shape {tuple(like.shape)}, got dtype {labels.dtype}"
        )
    if labels.shape not in ((), (1,), like.shape):
        raise ValueError(
            f"label must be one integer or have shape {tuple(like.shape)}, got "
            f"{tuple(labels.shape)}"
        )
    labels = labels.long()  # an embedding takes no other but int32
    if not torch.compiler.is_compiling():
        low, high = (label, label) if number else torch.stack(torch.aminmax(labels)).tolist()
        if low < 0 or high > classes:
            raise ValueError(
                f"labels must lie from 0 to {classes}, where {classes} is no label; got labels "
                f"from {low} to {high}"
            )
    return labels.expand(like.shape)
