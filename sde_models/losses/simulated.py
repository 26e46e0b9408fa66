r"""Score matching for an SDE of which only drift and diffusion are known.

Without a kernel there is no target for denoising, but the data can be carried forward by
simulation, and sliced score matching needs only the points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
import torchsde
from torch import Tensor, nn

from sde_models._utils.arguments import check_switch
from sde_models._utils.conditions import as_conditions
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import uniform_like
from sde_models._utils.shapes import check_batch
from sde_models._utils.split_batches import draw_rows
from sde_models.divergence.hutchinson import Hutchinson
from sde_models.losses.sliced import sliced_objective
from sde_models.losses.times import draw_strata
from sde_models.models.base import Model, check_model
from sde_models.sdes.base import SDE
from sde_models.sdes.brownian import FreshBrownian
from sde_models.solvers.options import NoOptions, check_options


def simulated_score_matching(
    model: Model,
    x0: Tensor,
    *,
    steps: int = 64,
    weight: Callable[[Tensor], Tensor] | None = None,
    probes: int = 1,
    distribution: str = "rademacher",
    variance_reduced: bool = True,
    generator: torch.Generator | None = None,
    cond: Mapping[str, Any] | None = None,
    **unknown: Unpack[NoOptions],
) -> Tensor:
    r"""Sliced score matching on simulated paths, for any SDE with f and g.

    .. math:: \frac1D E\,\lambda(t) \Big[ v^\top (\nabla s)\, v + \tfrac12 |s|^2 \Big]

    at points of paths of :math:`dx = f\,dt + g\,dB` that begin at the data, each at a time of its
    own, uniform on ``[t_min, t_max]``. Paths are made of Euler steps by torchsde, so the law of
    the points is off by :math:`O(1/steps)`.

    Args:
        model: What is trained; on an SDE without a kernel a :class:`~sde_models.ScoreModel` with
            ``prediction="score"``.
        x0: Data, shape ``(B, *event)``.
        steps: Euler steps from ``t_min`` to ``t_max``.
        weight: :math:`\lambda`, a function of times ``(B,)``; 1 if None. Where the data have no
            density, as on a surface, use one that vanishes at ``t_min``, such as t - t_min.
        probes: Directions v for each sample.
        distribution: Of v: "rademacher", "gaussian" or "sphere".
        variance_reduced: As in :func:`sliced_score_matching`.
        generator: Source of paths, times and probes; torch's global one if None.
        cond: Conditions by name, as for :func:`~sde_models.solve`.
        **unknown: None; a misspelt argument is refused with the nearest name.

    Returns:
        The loss, a scalar; it may be negative.

    Raises:
        TypeError: If ``x0`` is not floating.
        ValueError: If ``x0`` has the wrong shape or holds NaN, or ``steps`` or ``probes`` is below
            1.

    Reference:
        Song et al. 2021, section 3.3, arXiv:2011.13456; Song et al. 2019, arXiv:1905.07088.

    Example:
        >>> class OrnsteinUhlenbeck(sm.SDE):
        ...     def f(self, t, x):
        ...         return -x
        ...     def g(self, t, x):
        ...         return torch.full_like(x, 2**0.5)
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1)
        >>> model = sm.ScoreModel(network, OrnsteinUhlenbeck(), "score")
        >>> simulated_score_matching(model, torch.randn(8, 2)).backward()
    """
    check_options(simulated_score_matching, unknown, NoOptions)
    check_model(model)
    check_batch(x0, model.event_shape, "x0")
    steps = check_integer("steps", steps)
    check_switch("variance_reduced", variance_reduced)
    estimator = Hutchinson(probes, distribution)
    t, xt = simulate(model.sde, x0, steps, generator)
    given = as_conditions(cond, len(x0), x0.device)
    values = sliced_objective(
        lambda x: model.score(t, x, **given), xt, estimator, variance_reduced, generator
    )
    if weight is not None:
        values = weight(t) * values
    return values.mean() / x0[0].numel()


def simulate(
    sde: SDE, x0: Tensor, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Carry data forward by Euler steps, each to a time of its own.

    All paths share a grid whose first step has a random length. Each sample takes the node of
    one stratum, so that its time is uniform on ``[t_min, t_max]``.

    Args:
        sde: Forward SDE.
        x0: Data at ``t_min``, shape ``(B, *event)``.
        steps: Number of steps.
        generator: Source of randomness; torch's global one if None.

    Returns:
        Times ``(B,)``, and the samples there, shape of ``x0``.
    """
    length = (sde.t_max - sde.t_min) / steps
    first = float(draw_rows(_draw_once, x0, generator)[0]) * length
    nodes = sde.t_min + first + length * torch.arange(steps).to(x0)
    with torch.no_grad():
        start = _euler(sde, x0, torch.cat((nodes.new_tensor([sde.t_min]), nodes[:1])), generator)
        path = _euler(sde, start[-1], nodes, generator)
    u = draw_rows(draw_strata, x0, generator)
    which = (u * steps).long().clamp(max=steps - 1)
    return nodes[which], path[which, torch.arange(len(x0), device=x0.device)]


def _draw_once(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform number for all samples, shape ``(B,)``."""
    return uniform_like(like.new_empty(()), generator).expand(len(like))


def _euler(sde: SDE, x: Tensor, nodes: Tensor, generator: torch.Generator | None) -> Tensor:
    """The path at equally spaced nodes, the first of which is where ``x`` is."""
    if len(nodes) == 1 or not float(nodes[1]) > float(nodes[0]):
        return x.expand(len(nodes), *x.shape)
    flat = x.flatten(1)
    step = float(nodes[-1] - nodes[0]) / (len(nodes) - 1)
    path = torchsde.sdeint(
        _Flat(sde, x.shape), flat, nodes, bm=FreshBrownian(flat, generator), method="euler", dt=step
    )  # fmt: skip
    return path.reshape(len(nodes), *x.shape)


class _Flat(nn.Module):
    """An SDE with the flat state that torchsde takes."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde: SDE, shape: torch.Size) -> None:
        super().__init__()
        self.sde, self.shape = sde, shape

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        return self.sde.f(t.clone(), x.reshape(self.shape).clone()).reshape(x.shape)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        scale = self.sde.g(t.clone(), x.reshape(self.shape).clone())
        return scale.expand(self.shape).reshape(x.shape)
