"""The divergence of a vector field, exact or estimated by vector-Jacobian products."""

from sde_models.divergence.base import Divergence
from sde_models.divergence.exact import Exact
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.divergence.low_rank import HutchPlusPlus, XTrace
from sde_models.divergence.registry import DIVERGENCES, find_divergence

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "XTrace",
    "find_divergence",
]
