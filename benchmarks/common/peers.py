"""Samplers of other libraries, run on a model and SDE of this one.

Every sampler of diffusers and azula here starts from the same samples, ends at the same ``t_min``
and sees the model at the exact times of its own nodes, in double precision: what is measured is the
method alone. The nodes are computed here and passed on as noise ratios sigma / alpha, so that
any spacing can be tried with any method; a training discretisation never enters.

    peer = PEERS["diffusers UniPC 3"]
    for variant in peer.variants:
        with sm.count_evaluations() as counter:
            end = peer.run(problem.model, problem.x, 20, variant)
        print(variant, counter.calls, problem.error(end))
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from common.sampler_problems import GRIDS, Grid
from torch import Tensor

import sde_models as sm

Options = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Peer(ABC):
    """A sampler of another library.

    Attributes:
        name: Name in :data:`PEERS`.
        method: The class in the other library.
        options: Settings to choose from, by name.
        stochastic: Whether it draws noise.
        per_step: Evaluations of a step.
    """

    library: ClassVar[str]

    name: str
    method: str
    options: Options = field(default_factory=lambda: {"": {}})
    stochastic: bool = False
    per_step: int = 1

    @property
    def variants(self) -> tuple[str, ...]:
        """What :meth:`run` can be asked for: a grid, and a name in ``options`` if it has one."""
        return tuple(
            f"{grid}, {option}" if option else grid for grid in GRIDS for option in self.options
        )

    def run(
        self, model: sm.Model, x: Tensor, evaluations: int, variant: str,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Sample from ``t_max`` to ``t_min``.

        Args:
            model: A model on a :class:`~sde_models.VPSDE`.
            x: Start at ``t_max``, shape ``(B, *event)``, float64.
            evaluations: Evaluations of the model; as many are made, or the next lower number that
                the method can make. Count them by :func:`~sde_models.count_evaluations`.
            variant: One of :attr:`variants`.
            generator: Source of noise; torch's global one if None.

        Raises:
            ImportError: If the other library is not installed.
            ValueError: If the variant is unknown or the SDE is another.
        """
        if not isinstance(model.sde, sm.VPSDE):
            raise ValueError(f"peers run on a VPSDE, got {type(model.sde).__name__}")
        if variant not in self.variants:
            raise ValueError(f"unknown variant {variant!r} of {self.name}; known: {self.variants}")
        grid, _, option = variant.partition(", ")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say about settings and versions
            options = dict(self.options[option])
            return self._run(model, x, evaluations, GRIDS[grid], options, generator)

    @abstractmethod
    def _run(
        self, model: sm.Model, x: Tensor, evaluations: int, grid: Grid, options: dict[str, Any],
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        """Sample by the other library."""


@dataclass(frozen=True)
class DiffusersPeer(Peer):
    """A scheduler of diffusers, as a solver of this library. Among its options is eta."""

    library: ClassVar[str] = "diffusers"

    def _run(
        self, model: sm.Model, x: Tensor, evaluations: int, grid: Grid, options: dict[str, Any],
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        eta = options.pop("eta", 1.0)
        if not options.get("lower_order_final", True) and "Singlestep" in self.method:
            evaluations -= evaluations % options["solver_order"]  # it makes complete steps only
        solver = sm.make_solver(f"diffusers:{self.method}", **options)
        system: sm.System = sm.ProbabilityFlow(model)
        if self.stochastic:
            system = sm.ReverseSDE(model, x.shape[1:], eta)
        return sm.solve(
            system, x, (model.sde.t_max, model.sde.t_min), solver,
            steps=evaluations // self.per_step, grid=grid,
            generator=generator if self.stochastic else None,
        ).x  # fmt: skip


@dataclass(frozen=True)
class AzulaPeer(Peer):
    """A sampler of azula on our grid."""

    library: ClassVar[str] = "azula"

    def _run(
        self, model: sm.Model, x: Tensor, evaluations: int, grid: Grid, options: dict[str, Any],
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        method = getattr(_azula_samplers(), self.method)
        sde, steps = model.sde, evaluations // self.per_step
        times = grid(sde, sde.t_max, sde.t_min, steps)
        gridded = type(self.method, (method,), {"timesteps": times})
        if options.pop("repaired", False):
            gridded._exponential_adams_bashforth = staticmethod(_repaired(method))
        sampler = gridded(_Denoiser(model), steps=steps, silent=True, **options)
        if not self.stochastic:
            return sampler(x)
        with torch.random.fork_rng(devices=[]):  # it draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return sampler(x)


def _azula_samplers() -> ModuleType:
    try:
        return importlib.import_module("azula.sample")
    except ImportError as error:
        raise ImportError("these samplers need azula: pip install azula") from error


class _Denoiser:
    """A model with the interface of azula's samplers."""

    def __init__(self, model: sm.Model) -> None:
        self.model = model

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.sde.alpha(t), self.model.sde.sigma(t)

    def __call__(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=self.model.x0(t, x))


def _repaired(method: Any) -> Callable[..., Tensor]:
    """The coefficients of REAB with the factor that its derivation has.

    azula 0.11.1 multiplies its integral by the root of alpha_s^2 + sigma_t^2 where that of
    alpha_s^2 + sigma_s^2 is meant, which is 1 here, and thereby has order 1.
    """

    def coefficients(u: Tensor, i: int, n: int) -> Tensor:
        factor = torch.sqrt(torch.sigmoid(-2 * u[i + 1]) + torch.sigmoid(2 * u[i]))
        return method._exponential_adams_bashforth(u, i=i, n=n) / factor

    return coefficients


def _combine(*choices: Options) -> Options:
    """Every combination of one from each."""
    combined: Options = {"": {}}
    for choice in choices:
        combined = {
            ", ".join(filter(None, (name, other))): {**settings, **more}
            for name, settings in combined.items()
            for other, more in choice.items()
        }
    return combined


def _values(label: str, name: str, *values: Any) -> Options:
    """One setting with each of several values; the label goes before the value."""
    return {f"{label}{value}": {name: value} for value in values}


LAST: Options = {
    "lower order last": {"lower_order_final": True},
    "full order last": {"lower_order_final": False},
}
STAGE = _values("", "solver_type", "midpoint", "heun")
PREDICTED: Options = {"x0": {"predict_x0": True}, "noise": {"predict_x0": False}}
DPM = {"M": "DPMSolverMultistepScheduler", "S": "DPMSolverSinglestepScheduler"}


def _dpm(name: str, algorithm: str, order: int, kind: str, stochastic: bool = False) -> Peer:
    fixed: Options = {"": {"algorithm_type": algorithm, "solver_order": order}}
    last = {**LAST, "Euler last": {"euler_at_final": True}} if kind == "M" else LAST
    options = _combine(fixed, STAGE, last)
    return DiffusersPeer(f"{name} {order}{kind}", DPM[kind], options, stochastic)


def _unipc(order: int) -> Peer:
    fixed: Options = {"": {"solver_order": order}}
    options = _combine(fixed, PREDICTED, _values("", "solver_type", "bh1", "bh2"), LAST)
    return DiffusersPeer(f"UniPC {order}", "UniPCMultistepScheduler", options)


def _deis(order: int) -> Peer:
    options = _combine({"": {"solver_order": order}}, LAST)
    return DiffusersPeer(f"DEIS {order}", "DEISMultistepScheduler", options)


def _lms(order: int) -> Peer:
    return DiffusersPeer(f"LMS {order}", "LMSDiscreteScheduler", {"": {"order": order}})


def _sa(order: int) -> Peer:
    orders: Options = {"": {"predictor_order": order, "corrector_order": order + 1}}
    options = _combine(orders, _values("tau ", "eta", 0.5, 1), LAST)
    return DiffusersPeer(f"SA-Solver {order}", "SASolverScheduler", options, stochastic=True)


def _azula(name: str, order: int) -> Peer:
    options: Options = {"": {"order": order}}
    if name == "REAB":
        options = _combine(options, {"as it is": {}, "repaired": {"repaired": True}})
    return AzulaPeer(f"{name} {order}", f"{name}Sampler", options)


_ALL: list[Peer] = [
    *(_dpm("DPM-Solver++", "dpmsolver++", order, kind) for order in (2, 3) for kind in DPM),
    *(_dpm("DPM-Solver", "dpmsolver", order, kind) for order in (2, 3) for kind in DPM),
    *map(_unipc, (2, 3, 4)),
    *map(_deis, (2, 3)),
    *map(_lms, (2, 3, 4)),
    DiffusersPeer("Euler", "EulerDiscreteScheduler"),
    DiffusersPeer("Heun", "HeunDiscreteScheduler", per_step=2),
    DiffusersPeer("KDPM2", "KDPM2DiscreteScheduler", per_step=2),
    DiffusersPeer("DDIM", "DDIMScheduler"),
    DiffusersPeer("DDPM", "DDPMScheduler", stochastic=True),
    _dpm("SDE-DPM-Solver++", "sde-dpmsolver++", 2, "M", True),
    *map(_sa, (2, 3)),
    DiffusersPeer("Euler ancestral", "EulerAncestralDiscreteScheduler", stochastic=True),
    AzulaPeer("DDIM", "DDIMSampler"),
    AzulaPeer("Euler", "EulerSampler"),
    AzulaPeer("Heun", "HeunSampler", per_step=2),
    *(_azula(f"{name}AB", order) for name in ("z", "v", "zE", "xE", "RE") for order in (2, 3, 4)),
    AzulaPeer("DDPM", "DDPMSampler", stochastic=True),
    AzulaPeer("DDIM with noise", "DDIMSampler", _values("eta ", "eta", 0.25, 0.5, 1.0), True),
    AzulaPeer("Ito", "ItoSampler", _values("eta ", "eta", 0.5, 1.0), True),
    AzulaPeer("PC", "PCSampler", _values("delta ", "delta", 0.01, 0.1), True, per_step=2),
]

PEERS: dict[str, Peer] = {f"{peer.library} {peer.name}": peer for peer in _ALL}
"""Every peer by its library and name.

Two are not what their names say. The third-order update of diffusers' multistep DPM-Solver takes
half of the second derivative: 3M has order 2. REAB: see "repaired". With noise that update has a
wrong sign besides, and misses the density however many steps are taken: it is left out.
"""
