"""Score-matching objectives: functions of a model and data that return a scalar loss.

Each may be given to :func:`~sde_models.fit` as ``loss=``, with its options set by
``functools.partial``. :func:`fokker_planck_residual` and :func:`asymmetry` measure instead how far
a model is from the score of a diffusion.
"""

from sde_models.losses.denoising import denoising_score_matching
from sde_models.losses.finite_difference import finite_difference_sliced
from sde_models.losses.fokker_planck import fokker_planck_penalty, fokker_planck_residual
from sde_models.losses.implicit import implicit_score_matching
from sde_models.losses.learned_times import LearnedTimes
from sde_models.losses.noising import NoisedBatch
from sde_models.losses.registry import OBJECTIVES, find_objective
from sde_models.losses.simulated import simulated_score_matching
from sde_models.losses.sliced import sliced_score_matching
from sde_models.losses.symmetry import asymmetry
from sde_models.losses.times import (
    TIME_SAMPLERS,
    TimeSampler,
    draw_times,
    level_times,
    log_normal_times,
    log_snr_times,
    uniform_times,
)
from sde_models.losses.weightings import WEIGHTINGS, Weighting, min_snr, noise_weighting

__all__ = [
    "OBJECTIVES",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "LearnedTimes",
    "NoisedBatch",
    "TimeSampler",
    "Weighting",
    "asymmetry",
    "denoising_score_matching",
    "draw_times",
    "find_objective",
    "finite_difference_sliced",
    "fokker_planck_penalty",
    "fokker_planck_residual",
    "implicit_score_matching",
    "level_times",
    "log_normal_times",
    "log_snr_times",
    "min_snr",
    "noise_weighting",
    "simulated_score_matching",
    "sliced_score_matching",
    "uniform_times",
]
