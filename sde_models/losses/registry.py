"""Objectives by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sde_models._utils.errors import find_by_name
from sde_models.losses.denoising import denoising_score_matching
from sde_models.losses.finite_difference import finite_difference_sliced
from sde_models.losses.implicit import implicit_score_matching
from sde_models.losses.sliced import sliced_score_matching
from sde_models.losses.times import find_times
from sde_models.losses.weightings import find_weighting

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "denoising": denoising_score_matching,
    "sliced": sliced_score_matching,
    "finite-difference": finite_difference_sliced,
    "implicit": implicit_score_matching,
}


def find_objective(
    name: str, *, weighting: str | None = None, times: str | None = None
) -> Callable[..., Tensor]:
    """Make a loss for :func:`~sde_models.fit` by its name.

    Args:
        name: "denoising", "sliced", "finite-difference" or "implicit".
        weighting: "output", "edm", "simple", "min-snr" or "likelihood"; the default of the
            objective if None. "output" is for "denoising" only.
        times: "uniform", "log-snr", "importance" (the same) or "log-normal"; the default of the
            weighting if None.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or a weighting that does not suit
            the objective.
        TypeError: For what is no name.

    Example:
        >>> loss = find_objective("sliced", weighting="likelihood")
        >>> model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
        >>> loss(model, torch.randn(8, 2)).shape
        torch.Size([])
    """
    objective = find_by_name("objective", name, OBJECTIVES)
    found = None if weighting is None else find_weighting(weighting)
    if found is not None and found.noise_weight is None and name != "denoising":
        raise ValueError(
            f"weighting={weighting!r} is for the objective 'denoising', not for {name!r}: use "
            "'simple', 'edm', 'min-snr' or 'likelihood'"
        )
    if times is not None:
        find_times(times)
    named = {"weighting": weighting, "times": times}
    return partial(objective, **{key: v for key, v in named.items() if v is not None})
