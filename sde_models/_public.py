"""The public names, gathered once: what ``sde_models`` gives under its own name."""

import sde_models.data as data
import sde_models.losses as losses
import sde_models.nn as nn
import sde_models.sdes.grids as grids
from sde_models._utils.counting import Cost, count_evaluations
from sde_models._utils.errors import NonFiniteError, SolveError, StepLimitError, StepSizeError
from sde_models.divergence.base import Divergence
from sde_models.divergence.exact import Exact
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.divergence.low_rank import HutchPlusPlus, XTrace
from sde_models.likelihood.bits_per_dimension import BitsPerDim, bits_per_dim
from sde_models.likelihood.log_densities import LogProb, log_prob
from sde_models.likelihood.maximum_likelihood import maximum_likelihood_loss
from sde_models.likelihood.settings import LogProbOptions
from sde_models.models.base import Model
from sde_models.models.energy_model import EnergyModel
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.model_files import load_model, save_model
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow, ReverseSDE
from sde_models.sampling.adapted_grids import AdaptedGrid, adapt_grid
from sde_models.sampling.distribution import LatentTransform, ScoreDistribution
from sde_models.sampling.latents import Decoding, Encoding, decode, encode
from sde_models.sampling.samples import Sample, sample
from sde_models.sdes import (
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    FlowMatchingSDE,
    GaussianSDE,
    SubVPSDE,
)
from sde_models.sdes.grids import times_of_sigmas
from sde_models.sdes.system import System
from sde_models.shards import Shards
from sde_models.shards.evaluation import Evaluation, evaluate
from sde_models.shards.to_folder import decode_to_folder, encode_to_folder, sample_to_folder
from sde_models.solvers import Solution, Solver, Step, list_solvers, make_solver, solve
from sde_models.solvers.options import SolveOptions
from sde_models.training import Fit, fit

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptedGrid",
    "BitsPerDim",
    "CosineSDE",
    "Cost",
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
    "LogProbOptions",
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
    "SolveOptions",
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
    "grids",
    "list_solvers",
    "load_model",
    "log_prob",
    "losses",
    "make_solver",
    "maximum_likelihood_loss",
    "nn",
    "sample",
    "sample_to_folder",
    "save_model",
    "solve",
    "times_of_sigmas",
]
