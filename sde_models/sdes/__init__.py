"""The forward SDEs of the literature, in closed form.

Each is a :class:`~sde_models.GaussianSDE`, which documents how alpha, sigma, drift and diffusion
are related.
"""

from sde_models.sdes.base import SDE
from sde_models.sdes.cosine import CosineSDE
from sde_models.sdes.flow_matching import FlowMatchingSDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.linear_beta import VPSDE, SubVPSDE
from sde_models.sdes.registry import SDES, find_sde
from sde_models.sdes.variance_exploding import VESDE

__all__ = [
    "SDE",
    "SDES",
    "VESDE",
    "VPSDE",
    "CosineSDE",
    "FlowMatchingSDE",
    "GaussianSDE",
    "SubVPSDE",
    "find_sde",
]
