"""Networks for score models: called as ``network(t, x, **cond)``, with t of shape ``(B,)``."""

from sde_models.nn.mixing import MixingNetwork
from sde_models.nn.registry import NETWORKS, find_network, usual_network
from sde_models.nn.residual import ResidualNetwork
from sde_models.nn.time_conditioning import FourierFeatures
from sde_models.nn.unet import UNet

__all__ = [
    "NETWORKS",
    "FourierFeatures",
    "MixingNetwork",
    "ResidualNetwork",
    "UNet",
    "find_network",
    "usual_network",
]
