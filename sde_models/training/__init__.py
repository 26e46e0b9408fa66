"""Training: one call on a laptop, on many GPUs, and over a week with interruptions."""

from sde_models.split_batches import PartGenerator, draw_rows
from sde_models.training.callbacks import BitsPerDimCurve, SampleImages
from sde_models.training.objective import Loss
from sde_models.training.progress import Callback, Fit, Progress
from sde_models.training.sources import Batch, BatchSource
from sde_models.training.verb import fit

__all__ = [
    "Batch",
    "BatchSource",
    "BitsPerDimCurve",
    "Callback",
    "Fit",
    "Loss",
    "PartGenerator",
    "Progress",
    "SampleImages",
    "draw_rows",
    "fit",
]
