"""What samplers are compared on: models, starts, where the exact flow ends, and time grids.

Mixtures of Gaussians with exact scores in 2 and 64 dimensions, and the trained digits model of the
demonstration, all in double precision. A problem's reference is its probability flow from t_max to
t_min at a tolerance far below the errors to be measured; its exact samples are what a stochastic
sampler should draw. What takes long is kept in ``runs/benchmarks``, under a hash of all it depends
on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import beta as beta_distribution
from torch import Tensor

import sde_models as sm
from sde_models.data import digits
from sde_models.demo.run import DemoSettings, train
from sde_models.sdes.grids import karras_grid, log_snr_grid, quadratic_grid, uniform_grid

CACHE = Path(__file__).parents[2] / "runs" / "benchmarks"
STARTS = 256
"""Samples of the prior that every deterministic sampler starts from."""
EXACT = 8192
"""Samples that a stochastic sampler is judged against."""
REFERENCE_SOLVER = "scipy:DOP853"
Grid = Callable[[Any, float, float, int], Tensor]


@dataclass(frozen=True)
class Problem:
    """One model to sample from.

    Attributes:
        name: Name in :data:`PROBLEMS`.
        model: Gives the score, in double precision.
        x: Start at ``t_max``: exact samples of the prior, shape ``(256, *event)``.
        reference: End of the probability flow from ``x`` at ``t_min``.
        tolerance: Relative and absolute tolerance of the reference.
        exact: Samples of the density at ``t_min``, shape ``(8192, *event)``, independent of ``x``.
    """

    name: str
    model: sm.Model
    x: Tensor
    reference: Tensor
    tolerance: float
    exact: Tensor

    def error(self, x: Tensor) -> float:
        """Root mean square of the distance to the reference, per coordinate."""
        return float((x - self.reference).square().mean().sqrt())


def mixture(dim: int, seed: int) -> sm.GaussianMixture:
    """8 to 12 round Gaussians of unequal weight, of unit variance in all."""
    generator = torch.Generator().manual_seed(1000 * dim + seed)
    random = partial(torch.rand, generator=generator, dtype=torch.float64)
    count = int(torch.randint(8, 13, (), generator=generator))
    means = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    stds = 0.05 * 8 ** random(count)  # from 0.05 to 0.4
    weights = 0.3 + random(count)
    weights = weights / weights.sum()
    means = means - weights @ means
    between = float(weights @ means.square().mean(1))
    means = means * math.sqrt((1 - float(weights @ stds.square())) / between)
    return sm.GaussianMixture(means, stds, weights)


def mixture_problem(dim: int, seed: int) -> Problem:
    """The exact score of a :func:`mixture`."""
    density = mixture(dim, seed)
    model = density.score_model(sm.VPSDE())
    x = starts(model, STARTS, (dim,), seed=2)
    return Problem(
        name=f"mixture-{dim}d-{seed}",
        model=model,
        x=x,
        reference=flow(model, x, 1e-10),
        tolerance=1e-10,
        exact=density.diffuse(model.sde, model.sde.t_min).sample(
            EXACT, generator=torch.Generator().manual_seed(3)
        ),
    )


def digits_model(name: str = "digits", settings: DemoSettings | None = None) -> sm.Model:
    """The score model of handwritten digits that the demonstration trains, in double precision.

    Args:
        name: What its file is called.
        settings: Amount of work; the full demonstration if None.
    """
    path = CACHE / f"{name}.safetensors"
    if not path.exists():
        data = digits()
        generator = torch.Generator().manual_seed(0)
        settings = settings or DemoSettings()
        fit = train(data.train, data.levels, settings, generator=generator, progress=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        sm.save_model(path, fit.model)
    return sm.load_model(path).double()


def digits_problem() -> Problem:
    """The model of handwritten digits."""
    model = digits_model()
    shape = model.event_shape
    assert shape is not None
    x = starts(model, STARTS, shape, seed=2)
    return Problem(
        name="digits",
        model=model,
        x=x,
        reference=flow(model, x, 1e-8),
        tolerance=1e-8,
        exact=flow(model, starts(model, EXACT, shape, seed=3), 1e-5),
    )


MIXTURES = {
    f"mixture-{dim}d-{seed}": partial(mixture_problem, dim, seed)
    for dim in (2, 64)
    for seed in range(3)
}
PROBLEMS: dict[str, Callable[[], Problem]] = {**MIXTURES, "digits": digits_problem}
"""Every problem by name, made when called."""


def starts(model: sm.Model, count: int, event_shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Exact samples of the prior at ``t_max``, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    prior = model.sde.prior(event_shape)
    return prior.sample((count,), generator=generator, dtype=torch.float64)


def flow(model: sm.Model, x: Tensor, tolerance: float) -> Tensor:
    """The probability flow from ``t_max`` to ``t_min``, solved once and then read from disk."""
    sde = model.sde
    definition = hashlib.sha256(
        json.dumps([REFERENCE_SOLVER, tolerance, repr(sde), sde.t_min, sde.t_max]).encode()
    )
    for tensor in (x, *model.state_dict().values()):
        definition.update(tensor.contiguous().numpy().tobytes())
    path = CACHE / f"flow-{definition.hexdigest()[:24]}.safetensors"
    if not path.exists():
        system = sm.ProbabilityFlow(model)
        span = (sde.t_max, sde.t_min)
        arguments = {"rtol": tolerance, "atol": tolerance, "max_steps": 1_000_000}
        parts = [  # in batches, so that memory does not grow with the number of samples
            sm.solve(system, part, span, REFERENCE_SOLVER, **arguments).x
            for part in x.split(STARTS)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.cat(parts)}, path)
    return load_file(path)["x"]


def beta_grid(sde: sm.SDE, t0: float, t1: float, steps: int) -> Tensor:
    """Quantiles of Beta(0.6, 0.6) in t: denser at both ends (Lee et al. 2024)."""
    share = beta_distribution.ppf(torch.linspace(0, 1, steps + 1, dtype=torch.float64), 0.6, 0.6)
    return t0 + (t1 - t0) * torch.as_tensor(share)


def flow_grid(sde: sm.GaussianSDE, t0: float, t1: float, steps: int) -> Tensor:
    """Equal steps in sigma / (alpha + sigma), the time of flow matching."""
    ends = torch.sigmoid(-0.5 * sde.log_snr(sde.times([t0, t1])))
    share = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    return sde.t_from_log_snr(-2 * share.logit())


GRIDS: dict[str, Grid] = {
    "log-snr": log_snr_grid,  # "exponential" and "Lu" in diffusers
    "karras": karras_grid,
    "uniform": uniform_grid,  # "linspace", "leading" and "trailing" in diffusers, azula's own
    "quadratic": quadratic_grid,  # of DDIM and DEIS
    "beta": beta_grid,
    "flow": flow_grid,
}
"""Spacings to try with any method: functions (sde, t0, t1, steps)."""


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` between two sets of samples.

    It is 0 for equal distributions and positive otherwise. The estimate leaves out the distance of
    a sample to itself, which makes it free of bias; it may therefore come out slightly negative.

    Args:
        x: Samples, shape ``(n, *event)``.
        y: Samples to compare with, shape ``(m, *event)``.

    Reference:
        Szekely and Rizzo 2013, Energy statistics.
    """
    n, m = len(x), len(y)
    between = _sum_of_distances(x, y) / (n * m)
    within_x = _sum_of_distances(x, x) / (n * (n - 1))
    within_y = _sum_of_distances(y, y) / (m * (m - 1))
    return 2 * between - within_x - within_y


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    rows, columns = x.flatten(1), y.flatten(1)
    return sum(float(torch.cdist(part, columns).sum()) for part in rows.split(1024))


def covariance_error(x: Tensor, exact: Tensor) -> float:
    """Distance of two samples' covariances, relative to the second: Frobenius norms.

    Args:
        x: Samples to judge, shape ``(n, *event)``.
        exact: Samples to compare with, shape ``(m, *event)``.
    """
    target = exact.flatten(1).T.cov()
    return float((x.flatten(1).T.cov() - target).norm() / target.norm())
