"""Log-densities by other libraries and by the usual recipes, of a model of this library.

Every peer gets the same network and the same probability flow from ``t_min`` to ``t_max``, and puts
the log-determinant into the state of its ODE. The recipes are written out as their users write
them; flow_matching, zuko and k-diffusion run their own code. Each evaluation is a forward pass and
:meth:`Peer.products` vector-Jacobian products.

    peer = ScipyRecipe()
    with sm.count_evaluations() as counter:
        value = peer.log_prob(model, x, seed=0)
    print(value, counter.rows / len(x), peer.products(x))
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torchdiffeq import odeint

import sde_models as sm
from sde_models.sdes.priors import IsotropicGaussian

AT_ONCE = 2**18
"""Numbers of the vector-Jacobian products that an exact trace takes at once, as in this library."""


class Flow(nn.Module):
    """The probability flow of flat samples, shape ``(B, D)``, in model time."""

    def __init__(self, model: sm.Model, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.flow, self.event_shape = sm.ProbabilityFlow(model), event_shape

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.flow(t, x.reshape(len(x), *self.event_shape)).flatten(1)


@dataclass(frozen=True)
class Peer(ABC):
    """Log-densities by an ODE with the log-determinant in its state.

    Attributes:
        exact: Whether it takes the exact trace, in place of one fixed probe.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    library: ClassVar[str]
    method: ClassVar[str]
    chunked: ClassVar[bool] = False
    """Whether its exact trace takes a few products at a time, as large events need."""

    exact: bool = False
    rtol: float = 1e-5
    atol: float = 1e-5

    @property
    def name(self) -> str:
        """What it is called in tables."""
        trace = f"exact trace, {self.rtol:g}" if self.exact else "1 probe"
        return f"{self.library} {self.method}, {trace}"

    def products(self, x: Tensor) -> int:
        """Vector-Jacobian products of each evaluation, for a sample."""
        return x[0].numel() if self.exact else 1

    def prior(self, model: sm.Model, event_shape: tuple[int, ...]) -> IsotropicGaussian:
        """The law at ``t_max`` that it takes."""
        return model.sde.prior(event_shape)

    def log_prob(self, model: sm.Model, x: Tensor, seed: int) -> Tensor:
        """Log-densities in nats, shape ``(B,)``.

        Args:
            model: A model on a :class:`~sde_models.GaussianSDE`.
            x: Data at ``t_min``, shape ``(B, *event)``.
            seed: Of its probes.

        Raises:
            ImportError: If the other library is not installed.
        """
        shape = tuple(x.shape[1:])
        flat_prior = IsotropicGaussian((x[0].numel(),), self.prior(model, shape).std)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)  # they draw from the global generator
            return self._run(Flow(model, shape), model, x.flatten(1), flat_prior.log_prob)

    @abstractmethod
    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Log-densities of flat samples."""

    def _rates(self, flow: Flow, t: Tensor, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and divergence of the recipes."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = flow(t, x)
        if not self.exact:
            (product,) = torch.autograd.grad(velocity, x, probe)
            return velocity.detach(), (product * probe).sum(1)
        trace = x.new_zeros(len(x))
        for rows in torch.eye(x.shape[1]).to(x).split(max(1, AT_ONCE // x.numel())):
            (products,) = torch.autograd.grad(
                velocity, x, rows[:, None].expand(-1, len(x), -1),
                is_grads_batched=True, retain_graph=True,
            )  # fmt: skip
            trace += (products * rows[:, None]).sum((0, 2))
        return velocity.detach(), trace


def _signs(x: Tensor) -> Tensor:
    """A Rademacher probe for each sample."""
    return torch.randint_like(x, 2) * 2 - 1


@dataclass(frozen=True)
class ScipyRecipe(Peer):
    """The usual recipe, of score_sde_pytorch and its descendants: one RK45 for the batch."""

    library: ClassVar[str] = "SciPy"
    method: ClassVar[str] = "RK45"

    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        probe = _signs(x)

        def rates(t: float, state: Any) -> Any:
            samples = torch.from_numpy(state[: x.numel()]).to(x).reshape(x.shape)
            velocity, trace = self._rates(flow, x.new_tensor(t), samples, probe)
            return torch.cat([velocity.flatten(), trace]).double().numpy()

        start = torch.cat([x.flatten(), x.new_zeros(len(x))]).numpy()
        span = (model.sde.t_min, model.sde.t_max)
        solution = solve_ivp(rates, span, start, method="RK45", rtol=self.rtol, atol=self.atol)
        end = torch.from_numpy(solution.y[:, -1])
        z, change = end[: x.numel()].reshape(x.shape), end[x.numel() :]
        return log_prior(z) + change


@dataclass(frozen=True)
class TorchdiffeqRecipe(Peer):
    """The augmented form of FFJORD, by torchdiffeq."""

    library: ClassVar[str] = "torchdiffeq"
    method: ClassVar[str] = "dopri5"
    chunked: ClassVar[bool] = True

    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        probe = _signs(x)
        z, change = odeint(
            lambda t, state: self._rates(flow, t, state[0], probe),
            (x, x.new_zeros(len(x))), x.new_tensor([model.sde.t_min, model.sde.t_max]),
            method="dopri5", rtol=self.rtol, atol=self.atol,
        )  # fmt: skip
        return log_prior(z[-1]) + change[-1]


class _Reversed(nn.Module):
    """The flow on the clock of flow matching: from the prior at 0 to the data at 1."""

    def __init__(self, flow: Flow, sde: sm.SDE) -> None:
        super().__init__()
        self.flow, self.last, self.span = flow, sde.t_max, sde.t_max - sde.t_min

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -self.span * self.flow(self.last - self.span * t, x)


@dataclass(frozen=True)
class FlowMatchingPeer(Peer):
    """``ODESolver.compute_likelihood`` of flow_matching, at its own tolerances."""

    library: ClassVar[str] = "flow_matching"
    method: ClassVar[str] = "dopri5"

    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        solver = _library("flow_matching").ODESolver(_Reversed(flow, model.sde))
        default = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)  # of its probe, whatever the data are
        try:
            return solver.compute_likelihood(
                x, log_prior, step_size=None, method="dopri5", rtol=self.rtol, atol=self.atol,
                time_grid=x.new_tensor([1.0, 0.0]), exact_divergence=self.exact,
            )[1]  # fmt: skip
        finally:
            torch.set_default_dtype(default)


@dataclass(frozen=True)
class ZukoPeer(Peer):
    """``FreeFormJacobianTransform`` of zuko, which its CNF is made of, at its own tolerances."""

    library: ClassVar[str] = "zuko"
    method: ClassVar[str] = "dopri5"

    atol: float = 1e-6

    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        transform = _library("zuko").FreeFormJacobianTransform(
            flow, model.sde.t_min, model.sde.t_max,
            atol=self.atol, rtol=self.rtol, exact=self.exact,
        )  # fmt: skip
        z, change = transform.call_and_ladj(x)
        return log_prior(z) + change


@dataclass(frozen=True)
class KDiffusionPeer(Peer):
    r"""``sampling.log_likelihood`` of k-diffusion, at its own tolerances.

    It runs :math:`y = x / \alpha` over the noise :math:`\sigma / \alpha`, from the prior
    :math:`N(0, \sigma^2 / \alpha^2)`, and has no exact trace.
    """

    library: ClassVar[str] = "k-diffusion"
    method: ClassVar[str] = "dopri5"

    rtol: float = 1e-4
    atol: float = 1e-4

    def prior(self, model: Any, event_shape: tuple[int, ...]) -> IsotropicGaussian:
        return IsotropicGaussian(event_shape, float(model.sde.sigma(_ends(model.sde)[1])))

    def _run(
        self, flow: Flow, model: Any, x: Tensor, log_prior: Callable[[Tensor], Tensor]
    ) -> Tensor:
        sde = model.sde
        ends = _ends(sde)
        alpha, noise = sde.alpha(ends), (sde.sigma(ends) / sde.alpha(ends)).to(x)

        def denoised(y: Tensor, noise: Tensor) -> Tensor:
            t = sde.t_from_log_snr(-2 * noise.double().log()).clamp(sde.t_min, sde.t_max)
            samples = sde.alpha(t)[:, None].to(y) * y
            return model.x0(t.to(y), samples.reshape(len(y), *flow.event_shape)).flatten(1)

        value, _ = _library("k-diffusion").log_likelihood(
            denoised, x / alpha[0].to(x), noise[0], noise[1], rtol=self.rtol, atol=self.atol
        )
        return value - x.shape[1] * float(alpha[0].log())


def _ends(sde: Any) -> Tensor:
    return sde.times([sde.t_min, sde.t_max]).double()


def _library(name: str) -> ModuleType:
    """The module of a library that has the likelihood."""
    module, install = MODULES[name]
    try:
        if name == "k-diffusion" and "k_diffusion" not in sys.modules:
            # Its __init__ imports all that it trains and evaluates with; sampling needs none of it.
            package = importlib.util.find_spec("k_diffusion")
            if package is not None:
                sys.modules["k_diffusion"] = importlib.util.module_from_spec(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"these likelihoods need {name}: pip install {install}") from error


MODULES = {
    "flow_matching": ("flow_matching.solver", "flow_matching"),
    "zuko": ("zuko.transforms", "zuko"),
    "k-diffusion": ("k_diffusion.sampling", "--no-deps k-diffusion torchsde"),
}
"""Module with the likelihood of each library, and what installs it."""

ONE_PROBE: list[Peer] = [
    ScipyRecipe(), TorchdiffeqRecipe(), FlowMatchingPeer(), ZukoPeer(), KDiffusionPeer()
]  # fmt: skip
"""Every peer with one probe that is fixed for the path, at its own tolerances."""


def exact_peers(tolerances: tuple[float, ...]) -> list[Peer]:
    """Those with an exact trace: torchdiffeq at several tolerances, libraries at their own."""
    if not tolerances:
        return []
    recipes = [TorchdiffeqRecipe(exact=True, rtol=tol, atol=tol) for tol in tolerances]
    return [*recipes, FlowMatchingPeer(exact=True), ZukoPeer(exact=True)]


def absent(peer: Peer) -> str:
    """Why a peer cannot run; empty if it can."""
    try:
        if peer.library in MODULES:
            _library(peer.library)
    except ImportError as error:
        return str(error)
    return ""
