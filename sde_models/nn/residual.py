r"""A residual network for events of any shape, told the time at every block.

Each block reads its state normalised, then scaled and shifted by functions of the clock
(adaptive normalisation), and adds what it finds:

.. math:: h \leftarrow h + W_2\, \mathrm{silu}(W_1 [(1 + a) \odot \mathrm{norm}(h) + b]),

with a and b linear in an embedding of the clock. The output layer starts at zero.

References:
    He et al. 2016, Identity mappings in deep residual networks, arXiv:1603.05027.
    Perez et al. 2018, FiLM, arXiv:1709.07871; Peebles and Xie 2022, adaptive normalisation,
    arXiv:2212.09748.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
        if count < 2 or not 0 < lowest < highest < math.inf:
            raise ValueError(
                f"wanted 2 frequencies or more and 0 < lowest < highest, got count={count}, "
                f"lowest={lowest}, highest={highest}"
            )
        exponents = torch.linspace(math.log(lowest), math.log(highest), count)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, clock: Tensor) -> Tensor:
        """Features of shape ``(B, 2 count)`` of clock readings ``(B,)``."""
        angles = clock[:, None] * self.frequencies
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1)
        return (waves / self.frequencies.sqrt()[:, None]).flatten(1)


class ResidualBlock(nn.Module):
    """One residual block with adaptive normalisation.

    Args:
        width: Size of the state, and of the embedding that scales and shifts it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.activation = nn.SiLU()
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """State of shape ``(B, width)`` after the block."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        inner = self.inner((1 + scale) * self.norm(h) + shift)
        return h + self.outer(self.activation(inner))


class ResidualNetwork(nn.Module):
    r"""A residual network ``network(t, x, **cond)`` over events of any shape, smooth in t and x.

    Made for a :class:`~sde_models.ScoreModel` with any prediction or preconditioning. Events are
    flattened, so it suits vectors and small images. It has no dropout, can be differentiated
    twice, and takes batched vector-Jacobian products.

    Args:
        event_shape: Shape of one sample.
        width: Size of the hidden state.
        depth: Number of residual blocks.
        classes: Number of classes for conditioning by the keyword ``label``; None for no
            conditioning.
        frequencies: Number of Fourier frequencies of the clock.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> network = ResidualNetwork((1, 8, 8), width=32, depth=2, classes=10)
        >>> network(torch.rand(5), torch.randn(5, 1, 8, 8), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 256,
        depth: int = 2,
        *,
        classes: int | None = None,
        frequencies: int = 16,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(int(n) for n in event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(f"event_shape must hold positive sizes, got {self.event_shape}")
        for name, size in {"width": width, "depth": depth, "classes": classes}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.width, self.depth, self.classes, self.frequencies = width, depth, classes, frequencies
        size = math.prod(self.event_shape)
        self.clock = nn.Sequential(
            FourierFeatures(frequencies),
            nn.Linear(2 * frequencies, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        # One embedding more than there are classes: the last one is that of no label.
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.activation = nn.SiLU()
        self.read = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, size)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, t: Tensor, x: Tensor, *, label: Tensor | int | None = None) -> Tensor:
        """Output in the shape of ``x``.

        Args:
            t: Clock, shape ``(B,)``: what the model's prediction or preconditioning hands on.
            x: Noised samples, shape ``(B, *event)``.
            label: Class of each sample, an integer or shape ``(B,)``, from 0 to ``classes - 1``;
                ``classes`` or None for no label.

        Raises:
            TypeError: If a label is not whole, or the network has no classes.
            ValueError: If a shape does not fit or a label is out of range.
        """
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, this network takes events of shape "
                f"{self.event_shape}"
            )
        embedding = self.clock(t)
        if self.label is not None and self.classes is not None:
            embedding = embedding + self.label(as_labels(label, self.classes, t))
        elif label is not None:
            raise TypeError("label given to a network without classes: make it with classes=")
        embedding = self.activation(embedding)
        h = self.read(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.write(self.norm(h)).reshape(x.shape)
