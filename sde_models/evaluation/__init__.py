"""Likelihoods of a dataset of any size: chunk by chunk, resumable, on several processes."""

from sde_models.evaluation.verb import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
