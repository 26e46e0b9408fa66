r"""The exponential moving average of a model's weights.

.. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sde_models._utils.buffers import copy_buffers, find_buffers
from sde_models.training.module_state import (
    check_same_parameters,
    copy_model,
    find_attributes,
    find_parameters,
    warn_of_attributes,
)
from sde_models.training.progress import AnyModel

WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}
"""Dtypes in which an average would not move, since its steps round to zero."""


class MovingAverage(Generic[AnyModel]):
    """A separate model that holds averaged weights from the first step on.

    The average of weights in half precision is kept in single precision, and rounded into the
    averaged model. Frozen parameters and buffers of the averaged model are those of the raw one.

    Args:
        model: The model whose weights are averaged.
        decay: Factor of the average at each step, d.

    Attributes:
        model: The averaged model, in evaluation mode.

    Raises:
        TypeError: If the model cannot be copied.
    """

    def __init__(self, model: AnyModel, decay: float) -> None:
        self.model: AnyModel = copy_model(model).eval()
        self._average = get_ema_multi_avg_fn(decay)
        self._raw, self._weights = model, dict(model.named_parameters())
        self._parameters, self._attributes = find_parameters(model), find_attributes(model)
        self._averages: dict[str, Tensor] = dict(self.model.named_parameters())
        self._narrow = {name: w for name, w in self._averages.items() if w.dtype in WIDER}
        for name, weight in self._narrow.items():
            self._averages[name] = weight.detach().to(WIDER[weight.dtype])

    @torch.no_grad()
    def update(self, first: bool) -> None:
        """Take in the raw weights after a step; after the first they are the average.

        Raises:
            ValueError: If the network has made, dropped or replaced a parameter.
        """
        check_same_parameters(self._parameters, find_parameters(self._raw))
        learning: dict[str, Tensor] = {}
        if not first:
            learning |= {name: w for name, w in self._weights.items() if w.requires_grad}
        if learning:
            averages = [self._averages[name] for name in learning]
            for name in learning.keys() & self._narrow.keys():
                learning[name] = learning[name].to(self._averages[name].dtype)
            self._average(averages, list(learning.values()), None)
        for name in self._weights.keys() - learning.keys():
            self._averages[name].copy_(self._weights[name])
        for name, weight in self._narrow.items():
            weight.copy_(self._averages[name])
        copy_buffers(find_buffers(self._raw), self.model)

    def finish(self) -> None:
        """Warn of what has changed in training and is not in the averaged model."""
        warn_of_attributes(self._attributes, self._raw)

    def state(self) -> dict[str, Tensor]:
        """What the averaged model itself does not hold: averages of weights in half precision."""
        return {name: self._averages[name] for name in self._narrow}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave, after the averaged model has its weights."""
        for name in self._narrow:
            self._averages[name].copy_(state[name])
