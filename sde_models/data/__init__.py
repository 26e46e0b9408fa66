"""Data sets that need no download, and images with whole grey levels."""

from sde_models.data.dequantization import check_levels, dequantize, quantize
from sde_models.data.digits import Digits, digits

__all__ = ["Digits", "check_levels", "dequantize", "digits", "quantize"]
