r"""The U-Nets of score models for images, in their published layouts, by diffusers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sde_models._utils.arguments import NamesArguments, check_not_negative
from sde_models._utils.errors import find_by_name
from sde_models._utils.integers import check_integer, check_integers
from sde_models.nn.time_conditioning import as_labels
from sde_models.nn.unet_layouts import LAYOUTS, make_unet


class UNet(NamesArguments, nn.Module):
    r"""A U-Net ``network(t, x, label=...)`` for images, DDPM++ or NCSN++.

    Made for a :class:`~sde_models.ScoreModel` with any prediction or preconditioning, of the
    blocks of diffusers, with attention that can be differentiated twice. The output starts at
    zero.

    - "ddpm++" is the published network to the last parameter: 61.8 million for CIFAR-10, and 55.7
      million with EDM's multipliers (2, 2, 2). Its clock is embedded by sines and cosines of up to
      1000 radians per unit, as published for t in [0, 1].
    - "ncsn++" smooths by filters where it changes the resolution, and its clock is embedded by
      random Fourier features, as published for a quarter of log sigma. Between the image and every
      level it has one convolution down and one up, where the published network for CIFAR-10 passes
      learned features down and nothing up: 61.9 million parameters in place of 62.8, or 55.8 in
      place of 56.4 with EDM's multipliers.

    Args:
        image_shape: Channels, height and width of an image.
        layout: "ddpm++" or "ncsn++".
        channels: Channels of the first level: a multiple of 4, or of 32 for "ncsn++".
        multipliers: Channels of each level as multiples of ``channels``. Each level halves the
            image of the one before.
        blocks: Residual blocks of each level.
        attention_resolutions: Heights of the levels that have attention; if None 16 where there is
            such a level. The last level has attention in its middle in any case.
        classes: Number of classes of the condition ``label``; None for no labels.
        dropout: Probability of dropping out an activation in training.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the image cannot be halved so often, a name is unknown, or a number is out
            of its range.

    References:
        Song et al. 2021, Score-based generative modeling through stochastic differential
        equations, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364, table 7.

    Example:
        >>> network = UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, classes=10)
        >>> network(torch.rand(5), torch.randn(5, 1, 8, 8), label=torch.arange(5)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        layout: str = "ddpm++",
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] | None = None,
        classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        found = find_by_name("layout", layout, LAYOUTS)
        sizes = check_integers("image_shape", image_shape)
        if len(sizes) != 3:
            raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
        channels, blocks = check_integer("channels", channels), check_integer("blocks", blocks)
        classes = None if classes is None else check_integer("classes", classes)
        factor = found.multiple_of
        if channels % factor:
            raise ValueError(
                f"channels must be a multiple of {factor} for layout {layout!r}, got {channels}"
            )
        self.image_shape = (sizes[0], sizes[1], sizes[2])
        self.layout, self.channels, self.blocks = layout, channels, blocks
        self.multipliers = check_integers("multipliers", multipliers)
        if not self.multipliers:
            raise ValueError("multipliers must hold at least one number, got ()")
        self.classes, self.dropout = classes, check_not_negative("dropout", dropout, below=1)
        heights = self._heights()
        if attention_resolutions is None:
            attention_resolutions = [16] if 16 in heights else []
        self.attention_resolutions = check_integers("attention_resolutions", attention_resolutions)
        missing = sorted(set(self.attention_resolutions) - set(heights))
        if missing:
            raise ValueError(
                f"attention_resolutions names {missing}, expected heights of levels: {heights}"
            )
        self.unet = make_unet(
            found,
            self.image_shape,
            channels,
            [channels * m for m in self.multipliers],
            [height in self.attention_resolutions for height in heights],
            blocks=blocks,
            # One more than there are classes: the last one is that of no label.
            embeddings=None if classes is None else classes + 1,
            dropout=self.dropout,
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.image_shape

    def forward(self, t: Tensor, x: Tensor, *, label: Tensor | int | None = None) -> Tensor:
        """Output in the shape of ``x``; arguments and errors as for :class:`ResidualNetwork`."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, this network takes images of shape "
                f"{self.image_shape}"
            )
        return self.unet(x, t, as_labels(label, self.classes, t), return_dict=False)[0]

    def _heights(self) -> list[int]:
        """Height of each level."""
        levels, (_, height, width) = len(self.multipliers), self.image_shape
        factor = 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} cannot be halved {levels - 1} times, as the "
                f"{levels} multipliers {self.multipliers} need: give fewer, or pad the images to "
                f"multiples of {factor}"
            )
        return [height >> level for level in range(levels)]
