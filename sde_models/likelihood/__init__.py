"""Log-densities with their errors, and bits per dimension."""

from sde_models.likelihood.bits_per_dimension import BitsPerDim, bits_per_dim
from sde_models.likelihood.log_densities import LogProb, log_prob
from sde_models.likelihood.maximum_likelihood import maximum_likelihood_loss

__all__ = ["BitsPerDim", "LogProb", "bits_per_dim", "log_prob", "maximum_likelihood_loss"]
