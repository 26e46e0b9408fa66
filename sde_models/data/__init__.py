"""Data sets, most of which need no download, and images with integer grey levels."""

from sde_models.data.arrays import read_array
from sde_models.data.cell_densities import (
    Dequantization,
    TruncatedNormalDequantization,
    UniformDequantization,
)
from sde_models.data.dequantization import check_levels, dequantize, quantize
from sde_models.data.dequantized import Dequantized
from sde_models.data.handwritten_digits import Digits, digits
from sde_models.data.images import LevelImages, cifar10, fashion_mnist, image_folder, mnist
from sde_models.data.logit import LogitTransform
from sde_models.data.photograph_patches import Patches, patches
from sde_models.data.registry import DATA, find_data
from sde_models.data.toys import TOYS, MixtureParameters, toy, toy_mixture
from sde_models.data.training_data import TrainingData

__all__ = [
    "DATA",
    "TOYS",
    "Dequantization",
    "Dequantized",
    "Digits",
    "LevelImages",
    "LogitTransform",
    "MixtureParameters",
    "Patches",
    "TrainingData",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "check_levels",
    "cifar10",
    "dequantize",
    "digits",
    "fashion_mnist",
    "find_data",
    "image_folder",
    "mnist",
    "patches",
    "quantize",
    "read_array",
    "toy",
    "toy_mixture",
]
