"""Forward SDEs by their names."""

from __future__ import annotations

from collections.abc import Callable

from sde_models._utils.errors import find_by_name
from sde_models.sdes.cosine import CosineSDE
from sde_models.sdes.flow_matching import FlowMatchingSDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.sdes.linear_beta import VPSDE, SubVPSDE
from sde_models.sdes.variance_exploding import VESDE

SDES: dict[str, Callable[..., GaussianSDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": CosineSDE,
    "flow-matching": FlowMatchingSDE,
}


def find_sde(name: str, **settings: float) -> GaussianSDE:
    """Make a forward SDE by its name.

    Args:
        name: "vp", "subvp", "ve", "cosine" or "flow-matching".
        **settings: Those of its class, such as ``t_min`` and ``data_std``.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or a setting out of range.
        TypeError: For what is no name.

    Example:
        >>> find_sde("vp", t_min=1e-4)
        VPSDE(beta_min=0.1, beta_max=20, t_min=0.0001)
    """
    return find_by_name("SDE", name, SDES)(**settings)
