"""Training: one call on a laptop, on many GPUs, and over a week with interruptions."""

from sde_models._utils.split_batches import RowGenerator, draw_rows
from sde_models.training.callbacks import BitsPerDimCurve, SampleImages
from sde_models.training.fitting import fit
from sde_models.training.objective import Loss
from sde_models.training.progress import Callback, Fit, Progress
from sde_models.training.sources import Batch, BatchSource

__all__ = [
    "Batch",
    "BatchSource",
    "BitsPerDimCurve",
    "Callback",
    "Fit",
    "Loss",
    "Progress",
    "RowGenerator",
    "SampleImages",
    "draw_rows",
    "fit",
]
