"""Inputs of a network for the time and a label: features of the clock, and a base class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_models._utils.integers import check_integer, check_integers
from sde_models.nn.labels import as_labels


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


class TimeConditionedNetwork(nn.Module):
    """Base class of networks with one embedding of the time and the label.

    Args:
        event_shape: Shape of one sample.
        width: Size of the hidden state.
        depth: Number of blocks.
        embedding: Size of the embedding, in units of the width.
        classes: Number of classes, None for no labels.
        frequencies: Number of Fourier frequencies of the clock.

    Raises:
        ValueError: If a size is not positive.
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
        """The embedding of the clock and the label of each sample, shape ``(B, embedding)``.

        Args:
            t: Clock, shape ``(B,)``.
            x: Noised samples, whose shape is checked.
            label: As :func:`~sde_models.nn.labels.as_labels` takes it.

        Raises:
            TypeError: If a label is not an integer, or the network has no classes.
            ValueError: If a shape does not fit or a label is out of range.
        """
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
