r"""The mean of objectives without a known target.

The squared error of a score against the unknown :math:`\nabla \log p`, integrated by parts, is

.. math:: \tfrac12 E |s - \nabla \log p|^2 = E\,[\, \nabla \cdot s + \tfrac12 |s|^2 \,] + const .

Each objective is a function J of a score and points, whose mean this is or approximates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sde_models.divergence.base import Field
from sde_models.losses.noising import NoisedBatch, NoiseLevels
from sde_models.losses.weightings import Weighting, find_weighting
from sde_models.models.base import Model

Objective = Callable[[Field, NoisedBatch], Tensor]
"""J of a score, shape ``(B,)``, at the noised points of a batch."""


def mean_objective(
    model: Model,
    x0: Tensor,
    objective: Objective,
    levels: NoiseLevels,
    weighting: str | Weighting,
    cond: Mapping[str, Any],
) -> Tensor:
    r"""The mean of :math:`\lambda J / D` over data, noise and times, a scalar.

    Args:
        model: What is trained.
        x0: Data, shape ``(B, *event)``.
        objective: The function J.
        levels: The noise that is added to the data.
        weighting: Gives :math:`\lambda`.
        cond: Conditions of the batch.
    """
    found = find_weighting(weighting)
    batch = levels.apply(model, x0, found.times, found.divides_by_density)
    weight = found.score_weight(batch) / x0[0].numel()
    values = objective(lambda x: model.score(batch.t, x, **cond), batch)
    return batch.mean(weight * values)
