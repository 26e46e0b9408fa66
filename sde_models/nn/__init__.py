"""Networks for score models: called as ``network(t, x, **cond)``, with t of shape ``(B,)``."""

from sde_models.nn.clocked import FourierFeatures
from sde_models.nn.mixing import MixingNetwork
from sde_models.nn.residual import ResidualNetwork
from sde_models.nn.unet import UNet

__all__ = ["FourierFeatures", "MixingNetwork", "ResidualNetwork", "UNet"]
