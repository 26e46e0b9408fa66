r"""A residual network for events of any shape, conditioned on the time at every block.

Each block reads its state normalised, then scaled and shifted by functions of the clock
(adaptive normalisation), and adds the result of two layers:

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

from torch import Tensor, nn

from sde_models.nn.time_conditioning import TimeConditionedNetwork


class ResidualBlock(nn.Module):
    """One residual block, scaled and shifted by an embedding of the same width."""

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


class ResidualNetwork(TimeConditionedNetwork):
    r"""A residual network ``network(t, x, **cond)`` over events of any shape, smooth in t and x.

    Made for a :class:`~sde_models.ScoreModel` with any prediction or preconditioning. Events are
    flattened, so it suits vectors and small images. It has no dropout, can be differentiated
    twice, and takes batched vector-Jacobian products.

    Args:
        event_shape: Shape of one sample.
        width: Size of the hidden state.
        depth: Number of residual blocks.
        classes: Number of classes of the condition ``label``; None for no labels.
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
        super().__init__(
            event_shape, width, depth, embedding=1, classes=classes, frequencies=frequencies
        )
        size, width = math.prod(self.event_shape), self.width
        self.read = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(self.depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, size)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, t: Tensor, x: Tensor, *, label: Tensor | int | None = None) -> Tensor:
        """Output in the shape of ``x``.

        Args:
            t: Clock, shape ``(B,)``, as the model's prediction or preconditioning gives it.
            x: Noised samples, shape ``(B, *event)``.
            label: Class of each sample, an integer or shape ``(B,)``, from 0 to ``classes - 1``;
                ``classes`` or None for no label.

        Raises:
            TypeError: If a label is not an integer, or the network has no classes.
            ValueError: If a shape does not fit or a label is out of range.
        """
        embedding = self.embed(t, x, label)
        h = self.read(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.write(self.norm(h)).reshape(x.shape)
