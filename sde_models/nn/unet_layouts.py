r"""The published U-Nets of score models, made of the blocks of diffusers.

Changes to the blocks of diffusers that both have in common: every residual sum is divided by
:math:`\sqrt 2`, every block and the output start at zero, blocks that change the resolution project
their shortcut, and each level has one attention in the decoder.

References:
    Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364, appendix F.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class ClockWaves(nn.Module):
    """Cosines and sines of a clock at given frequencies, all of amplitude 1.

    Args:
        frequencies: Angular frequencies, shape ``(K,)``.

    Example:
        >>> ClockWaves(torch.tensor([1.0, 10.0]))(torch.zeros(1))
        tensor([[1., 1., 0., 0.]])
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, clock: Tensor) -> Tensor:
        """Features of shape ``(B, 2 K)`` of clock readings ``(B,)``."""
        angles = clock[:, None] * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1)


def positional(channels: int) -> Tensor:
    """Frequencies from 1000 down to 0.1 radians per unit: those of 1000 steps of a discrete t."""
    return torch.logspace(3, -1, channels // 2)


def gaussian(channels: int) -> Tensor:
    """Random frequencies of a standard deviation of 16 turns per unit."""
    return 2 * math.pi * 16 * torch.randn(channels)


@dataclass(frozen=True)
class Layout:
    """How a U-Net is put together.

    Attributes:
        down: Blocks of the encoder, without and with attention.
        up: Blocks of the decoder, likewise.
        frequencies: Those of the clock, for a number of channels.
        multiple_of: The number of channels must be a multiple of this.
        groups: Groups of the normalisation, for a number of channels; None where blocks decide.
        settings: Further settings of ``UNet2DModel``.
    """

    down: tuple[str, str]
    up: tuple[str, str]
    frequencies: Callable[[int], Tensor]
    multiple_of: int
    groups: Callable[[int], int | None]
    settings: Mapping[str, Any] = field(default_factory=dict)


LAYOUTS: dict[str, Layout] = {
    "ddpm++": Layout(
        down=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up=("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        frequencies=positional,
        multiple_of=4,
        groups=lambda channels: math.gcd(32, channels // 4),
        settings={"downsample_type": "resnet", "upsample_type": "resnet"},
    ),
    "ncsn++": Layout(
        down=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up=("SkipUpBlock2D", "AttnSkipUpBlock2D"),
        frequencies=gaussian,
        multiple_of=32,  # the groups of diffusers' blocks
        groups=lambda channels: None,
    ),
}


def make_unet(
    layout: Layout,
    image_shape: tuple[int, int, int],
    channels: int,
    widths: Sequence[int],
    attention: Sequence[bool],
    *,
    blocks: int,
    embeddings: int | None,
    dropout: float,
) -> nn.Module:
    """Make a ``UNet2DModel`` of diffusers, called with ``(x, clock, labels)``.

    Args:
        layout: How it is put together.
        image_shape: Channels, height and width.
        channels: Channels that an image is first turned into; the clock gets four times as many.
        widths: Channels of each level, from the finest.
        attention: Whether each level has attention.
        blocks: Residual blocks of each level.
        embeddings: Number of labels, or None.
        dropout: Probability of dropping out an activation.
    """
    try:
        diffusers = importlib.import_module("diffusers")  # optional, and slow to import
    except ImportError as error:
        raise ImportError(
            "sm.nn.UNet needs diffusers: pip install sde-models[diffusers]"
        ) from error
    unet = diffusers.UNet2DModel(
        sample_size=image_shape[1:],
        in_channels=image_shape[0],
        out_channels=image_shape[0],
        block_out_channels=tuple(widths),
        down_block_types=tuple(layout.down[a] for a in attention),
        up_block_types=tuple(layout.up[a] for a in reversed(attention)),
        layers_per_block=blocks,
        attention_head_dim=None,  # one head
        time_embedding_dim=4 * channels,
        norm_num_groups=layout.groups(channels),
        norm_eps=1e-6,
        dropout=dropout,
        num_class_embeds=embeddings,
        **layout.settings,
    )
    frequencies = layout.frequencies(channels)
    unet.time_proj = ClockWaves(frequencies)
    unet.time_embedding.linear_1 = nn.Linear(2 * len(frequencies), 4 * channels)
    _narrow(unet, image_shape[0], channels, widths[0])
    _take_channels(unet, image_shape[0])
    _rescale(unet)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def _narrow(unet: Any, image_channels: int, channels: int, width: int) -> None:
    """Read the image into ``channels``, where diffusers uses the width of the first level."""
    if channels == width:
        return
    unet.conv_in = nn.Conv2d(image_channels, channels, 3, padding=1)
    for resnets, i in ((unet.down_blocks[0].resnets, 0), (unet.up_blocks[-1].resnets, -1)):
        wide = resnets[i]
        resnets[i] = type(wide)(
            in_channels=wide.in_channels - width + channels,
            out_channels=width,
            temb_channels=4 * channels,
            groups=wide.norm1.num_groups,
            groups_out=wide.norm2.num_groups,
            dropout=wide.dropout.p,
        )


def _take_channels(unet: Any, channels: int) -> None:
    """Replace the convolutions to and from images, which diffusers has for three channels only."""
    for block in unet.down_blocks:
        if getattr(block, "skip_conv", None) is not None:
            block.skip_conv = nn.Conv2d(channels, block.skip_conv.out_channels, 1)
    for block in unet.up_blocks:
        if getattr(block, "skip_conv", None) is not None:
            block.skip_conv = nn.Conv2d(block.skip_conv.in_channels, channels, 3, padding=1)
            nn.init.zeros_(block.skip_conv.weight)
            nn.init.zeros_(block.skip_conv.bias)


def _rescale(unet: Any) -> None:
    """Make the changes that the docstring of this module lists."""
    blocks = importlib.import_module("diffusers.models.resnet").ResnetBlock2D
    processors = importlib.import_module("diffusers.models.attention_processor")
    for block in unet.up_blocks:
        attentions: Any = getattr(block, "attentions", ())
        for i in range(len(attentions) - 1):
            attentions[i] = nn.Identity()
    for module in list(unet.modules()):
        if isinstance(module, blocks):
            module.output_scale_factor = math.sqrt(2)
            if module.up or module.down:
                module.conv_shortcut = nn.Conv2d(module.in_channels, module.out_channels, 1)
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, processors.Attention):
            module.rescale_output_factor = math.sqrt(2)
            # The fused one cannot be differentiated twice, as the gradient of a trace is.
            module.set_processor(processors.AttnProcessor())
            module.upcast_softmax = False  # it would round float64
            nn.init.zeros_(module.to_out[0].weight)
