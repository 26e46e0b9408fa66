r"""A network for small images, with convolutions and a matrix over all pixels in each block.

Each block reads its state normalised, then scaled and shifted by functions of the clock (adaptive
normalisation), and adds the results of convolutions C and of a matrix M over the pixels, the same
for every channel:

.. math:: g = \mathrm{silu}(C_1 [(1 + a) \odot \mathrm{norm}(h) + b]), \qquad
          h \leftarrow h + C_2\, g + M g .

References:
    He et al. 2016, Identity mappings in deep residual networks, arXiv:1603.05027; Tolstikhin et al.
    2021, MLP-Mixer, arXiv:2105.01601; Liu et al. 2018, CoordConv, arXiv:1807.03247.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_models._utils.integers import check_integers
from sde_models.nn.time_conditioning import TimeConditionedNetwork


class MixingBlock(nn.Module):
    """One residual block, scaled and shifted by an embedding."""

    def __init__(self, width: int, pixels: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(width), width, affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.mixing = nn.Linear(pixels, pixels)
        self.activation = nn.SiLU()
        for layer in (self.modulation, self.mixing):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.outer.weight)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """State of shape ``(B, width, height, length)`` after the block."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        inner = self.activation(self.inner((1 + scale) * self.norm(h) + shift))
        mixed = self.mixing(inner.flatten(2)).reshape(inner.shape)
        return h + self.outer(inner) + mixed


class MixingNetwork(TimeConditionedNetwork):
    r"""A network ``network(t, x, **cond)`` for small images, smooth in t and x.

    For images of up to about 32 x 32, whose pixels are few enough for a matrix over them; for
    larger ones :class:`~sde_models.nn.UNet`. It has no dropout, can be differentiated twice, and
    takes batched vector-Jacobian products.

    Args:
        event_shape: Channels, height and width of an image.
        width: Channels of the hidden state.
        depth: Number of blocks.
        classes: Number of classes of the condition ``label``; None for no labels.
        frequencies: Number of Fourier frequencies of the clock.

    Raises:
        ValueError: If a size is not positive, or the event shape is not that of an image.

    Example:
        >>> network = MixingNetwork((1, 8, 8), width=8, depth=2, classes=10)
        >>> network(torch.rand(5), torch.randn(5, 1, 8, 8), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    positions: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 32,
        depth: int = 3,
        *,
        classes: int | None = None,
        frequencies: int = 16,
    ) -> None:
        event_shape = check_integers("event_shape", event_shape)
        if len(event_shape) != 3:
            raise ValueError(
                f"event_shape must be (channels, height, width), got {event_shape}; for vectors "
                "use sm.nn.ResidualNetwork"
            )
        super().__init__(
            event_shape, width, depth, embedding=2, classes=classes, frequencies=frequencies
        )
        width, (channels, *sides) = self.width, self.event_shape
        axes = [torch.linspace(-1, 1, side) for side in sides]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.register_buffer("positions", places, persistent=False)
        self.read = nn.Conv2d(channels + 2, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            MixingBlock(width, sides[0] * sides[1], 2 * width) for _ in range(self.depth)
        )
        self.norm = nn.GroupNorm(_groups(width), width)
        self.write = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.write.parameters():
            nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, *, label: Tensor | int | None = None) -> Tensor:
        """Output in the shape of ``x``; arguments and errors as for :class:`ResidualNetwork`."""
        embedding = self.embed(t, x, label)
        h = self.read(torch.cat([x, self.positions.expand(len(x), -1, -1, -1)], dim=1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.write(self.activation(self.norm(h)))


def _groups(width: int) -> int:
    """Groups of channels that are normalised together: eight, or fewer for odd widths."""
    return max(n for n in (1, 2, 4, 8) if (width % n == 0 and width >= 2 * n) or n == 1)
