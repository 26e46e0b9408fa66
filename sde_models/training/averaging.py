r"""The exponential moving average of a model's weights.

.. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sde_models.training.progress import AnyModel


class MovingAverage(Generic[AnyModel]):
    """A model of its own that holds averaged weights from the first step on, and never raw ones.

    Args:
        model: The model whose weights are averaged.
        decay: What is kept at each step, d.

    Attributes:
        model: The averaged model, in evaluation mode. Buffers are those of the raw model.
    """

    def __init__(self, model: AnyModel, decay: float) -> None:
        self.model: AnyModel = copy.deepcopy(model).eval()
        self._average = get_ema_multi_avg_fn(decay)
        self._weights = list(self.model.parameters()), list(model.parameters())
        self._buffers = list(self.model.buffers()), list(model.buffers())

    @torch.no_grad()
    def update(self, first: bool) -> None:
        """Take in the raw weights after a step; after the first they are the average."""
        averaged, raw = self._weights
        if first:
            _copy(averaged, raw)
        else:
            self._average(averaged, raw, None)
        _copy(*self._buffers)


def _copy(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
