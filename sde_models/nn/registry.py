"""Networks by their names, and which one suits a kind of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from sde_models._utils.errors import find_by_name
from sde_models._utils.integers import check_integers
from sde_models.nn.mixing import MixingNetwork
from sde_models.nn.residual import ResidualNetwork
from sde_models.nn.unet import UNet

MIXED_SIDE = 32
"""Longest side of an image whose pixels are few enough for a matrix over them."""

MULTIPLIERS = (1, 2, 2, 2)
"""Channels of the levels of a U-Net; a small image uses only the first of them."""


def usual_network(event_shape: Sequence[int]) -> str:
    """Name of the network that suits samples of a shape.

    Example:
        >>> usual_network((2,)), usual_network((1, 8, 8)), usual_network((3, 64, 64))
        ('residual', 'mixing', 'ddpm++')
    """
    if len(event_shape) != 3:
        return "residual"
    return "mixing" if max(event_shape[1:]) <= MIXED_SIDE else "ddpm++"


def find_network(
    name: str,
    event_shape: Sequence[int],
    *,
    width: int | None = None,
    depth: int | None = None,
    classes: int | None = None,
) -> nn.Module:
    """Make a network by its name.

    Args:
        name: "residual", "mixing", "ddpm++" or "ncsn++".
        event_shape: Shape of one sample.
        width: Size of the hidden state: numbers, or channels. If None, the network's default.
        depth: Number of blocks, in a U-Net of each level. If None, the network's default.
        classes: Number of classes of the condition ``label``; None for no labels.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or sizes that do not fit.
        TypeError: For what is no name.
        ImportError: For a U-Net, if diffusers is not installed.

    Example:
        >>> network = find_network("mixing", (1, 8, 8), width=16)
        >>> network.width, network.depth
        (16, 3)
    """
    make = find_by_name("network", name, NETWORKS)
    sizes = {"width": width, "depth": depth, "classes": classes}
    given = {key: size for key, size in sizes.items() if size is not None}
    return make(check_integers("event_shape", event_shape), **given)


def _unet(event_shape: Sequence[int], layout: str, **sizes: int) -> nn.Module:
    names = {"width": "channels", "depth": "blocks"}
    factor = math.gcd(*event_shape[1:])
    halvings = (factor & -factor).bit_length() - 1  # of both sides
    own: dict[str, Any] = {names.get(key, key): size for key, size in sizes.items()}
    return UNet(event_shape, layout, multipliers=MULTIPLIERS[: 1 + halvings], **own)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "residual": ResidualNetwork,
    "mixing": MixingNetwork,
    "ddpm++": partial(_unet, layout="ddpm++"),
    "ncsn++": partial(_unet, layout="ncsn++"),
}
