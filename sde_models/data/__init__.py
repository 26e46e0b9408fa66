"""Data sets that need no download, and images with whole grey levels."""

from sde_models.data.arrays import read_array
from sde_models.data.cell_densities import (
    Dequantization,
    TruncatedNormalDequantization,
    UniformDequantization,
)
from sde_models.data.dequantization import check_levels, dequantize, quantize
from sde_models.data.digits import Digits, digits
from sde_models.data.logit import LogitTransform

__all__ = [
    "Dequantization",
    "Digits",
    "LogitTransform",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "check_levels",
    "dequantize",
    "digits",
    "quantize",
    "read_array",
]
