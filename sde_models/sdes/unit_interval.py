"""The end of time of SDEs that lose all of the data at t = 1."""

from __future__ import annotations

from sde_models.sdes.gaussian import GaussianSDE


def require_below_one(sde: GaussianSDE) -> None:
    """Refuse a ``t_max`` at which the noise of the SDE is infinite.

    Raises:
        ValueError: If it is 1 or more.
    """
    if sde.t_max >= 1:
        raise ValueError(
            f"t_max of {type(sde).__name__} must lie below 1, where the noise of its SDE is "
            f"infinite; got {sde.t_max}"
        )
