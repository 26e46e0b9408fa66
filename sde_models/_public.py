"""The public names, gathered once: what ``sde_models`` gives under its own name."""

import sde_models.data as data
import sde_models.grids as grids
import sde_models.losses as losses
import sde_models.nn as nn
from sde_models.adapted_grids import AdaptedGrid, adapt_grid
from sde_models.analytic import GaussianMixture
from sde_models.base_divergence import Divergence
from sde_models.base_systems import System
from sde_models.checkpoints import load_model, save_model
from sde_models.counting import count_evaluations
from sde_models.discrete import BitsPerDim, bits_per_dim
from sde_models.distribution import LatentTransform, ScoreDistribution
from sde_models.divergence import Exact, Hutchinson
from sde_models.errors import NonFiniteError, SolveError, StepLimitError, StepSizeError
from sde_models.evaluation import Evaluation, evaluate
from sde_models.grids import times_of_sigmas
from sde_models.latents import Decoding, Encoding, decode, encode
from sde_models.likelihood import LogProb, log_prob
from sde_models.likelihood_training import maximum_likelihood_loss
from sde_models.low_rank_divergence import HutchPlusPlus, XTrace
from sde_models.models import EnergyModel, Model, ScoreModel
from sde_models.sampling import Sample, sample
from sde_models.sdes import (
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatchingSDE,
    GaussianSDE,
    SubVPSDE,
)
from sde_models.shards import Shards
from sde_models.solvers import Solution, Solver, Step, solve, solver, solvers
from sde_models.solvers.langevin_levels import (
    geometric_sigmas,
    langevin_epsilon,
    largest_sigma,
    level_ratio,
)
from sde_models.systems import ProbabilityFlow, ReverseSDE
from sde_models.to_folder import decode_to_folder, encode_to_folder, sample_to_folder
from sde_models.training import Fit, fit

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptedGrid",
    "BitsPerDim",
    "CosineSDE",
    "Decoding",
    "Divergence",
    "Encoding",
    "EnergyModel",
    "Evaluation",
    "Exact",
    "Fit",
    "FlowMatchingSDE",
    "GaussianMixture",
    "GaussianSDE",
    "HutchPlusPlus",
    "Hutchinson",
    "LatentTransform",
    "LogProb",
    "Model",
    "NonFiniteError",
    "ProbabilityFlow",
    "ReverseSDE",
    "Sample",
    "ScoreDistribution",
    "ScoreModel",
    "Shards",
    "Solution",
    "SolveError",
    "Solver",
    "Step",
    "StepLimitError",
    "StepSizeError",
    "SubVPSDE",
    "System",
    "XTrace",
    "adapt_grid",
    "bits_per_dim",
    "count_evaluations",
    "data",
    "decode",
    "decode_to_folder",
    "encode",
    "encode_to_folder",
    "evaluate",
    "fit",
    "geometric_sigmas",
    "grids",
    "langevin_epsilon",
    "largest_sigma",
    "level_ratio",
    "load_model",
    "log_prob",
    "losses",
    "maximum_likelihood_loss",
    "nn",
    "sample",
    "sample_to_folder",
    "save_model",
    "solve",
    "solver",
    "solvers",
    "times_of_sigmas",
]
