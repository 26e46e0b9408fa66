"""Models, which give the score of a diffused density, and the systems made of them."""

from sde_models.models.base import Model
from sde_models.models.energy_model import EnergyModel
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.model_files import load_model, save_model
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow, ReverseSDE

__all__ = [
    "EnergyModel",
    "GaussianMixture",
    "Model",
    "ProbabilityFlow",
    "ReverseSDE",
    "ScoreModel",
    "load_model",
    "save_model",
]
