"""What users get hold of is theirs: no in-place change by their code moves an answer.

A network, system, SDE, divergence, prior or callback that spoils every tensor it is handed, behind
autograd's back, must give the numbers of one that keeps to itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm
from sde_models._utils.conditions import copied
from sde_models._utils.counting import record_call

TABLE = sm.list_solvers()
SDE = sm.VPSDE(t_min=1e-3)
every_solver = pytest.mark.parametrize("name", TABLE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spoil(*values: Any) -> None:
    """Fill tensors with NaN, which neither autograd nor a version counter sees."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            value.data.fill_(torch.nan)
        elif isinstance(value, Tensor):
            value.data.add_(1)
        elif isinstance(value, dict | list):
            spoil(*(value.values() if isinstance(value, dict) else value))


class Calm(nn.Module):
    """A network with conditioning, which leaves alone what it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 4)

    def forward(self, t: Tensor, x: Tensor, label: Tensor, more: list[Tensor]) -> Tensor:
        # Copies, so that what autograd keeps for the way back is not what a vandal spoils.
        t, x, label = t.clone(), x.clone(), label.clone()
        return self.inner(x).tanh() * (1 + t[:, None]) + 0.1 * label[:, None] + more[0].clone()


class Vandal(Calm):
    """The same that spoils its input and keeps one tensor for all its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[torch.Size, Tensor] = {}

    def forward(self, t: Tensor, x: Tensor, label: Tensor, more: list[Tensor]) -> Tensor:
        output = super().forward(t, x, label, more)
        if not output.requires_grad:
            output = self.kept.setdefault(output.shape, torch.empty_like(output)).copy_(output)
        if not torch.is_inference(x) and not x.requires_grad:
            t.mul_(1000)
            x.mul_(2)
            x.numpy()[:] = 0
        spoil(t, x, label, more)
        return output


def vandal_callback(step: sm.Step) -> None:
    spoil(step.t, step.x)


LABEL = torch.arange(3)


def run(network: nn.Module, name: str, callback: Any, kind: dict[str, Any]) -> Any:
    """Samples and their path, with all conditioning in tensors of its own."""
    solver = TABLE[name]
    effort: dict[str, Any] = {"rtol": 0.3, "atol": 0.3} if solver.adaptive else {"steps": 5}
    path = not (solver.adaptive and name in ("rk-batch", "adams-batch", "adaptive-sde"))
    return sm.sample(
        sm.ScoreModel(network, SDE, **kind).eval(), (3, 4), name, generator=generator(),
        cond={"label": LABEL.clone(), "more": [torch.ones(1)]}, callback=callback, path=path,
        **effort,
    )  # fmt: skip


@every_solver
@pytest.mark.parametrize("kind", [{}, {"prediction": "x0"}], ids=str)
def test_every_solver_shares_nothing(name: str, kind: dict[str, Any]) -> None:
    wanted = run(Calm(), name, None, kind)
    with torch.inference_mode(kind == {}):
        got = run(Vandal(), name, vandal_callback, kind)
    assert torch.equal(got.x, wanted.x)
    assert got.cost == wanted.cost
    if got.path is not None:
        assert torch.equal(got.path, wanted.path)
        spoil(got.path)
        assert torch.equal(got.x, wanted.x)


class Users(sm.Model):
    """A user's model: of standard normal data on VP, where eps is sigma x and x0 alpha x."""

    def __init__(self, vandal: bool, sde: sm.GaussianSDE = SDE) -> None:
        super().__init__(sde)
        self.vandal = vandal
        self.kept = torch.empty(2, 3, 4)

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        record_call(len(x))
        shape = (-1, *(1,) * (x.ndim - 1)) if t.ndim else ()
        alpha, sigma = (scale(t).reshape(shape) for scale in (self.sde.alpha, self.sde.sigma))
        x0, eps = alpha * x, sigma * x.clone()
        if self.vandal and x.shape == self.kept.shape[1:] and not x.requires_grad:
            x0, eps = self.kept.copy_(torch.stack([x0, eps]))
        if self.vandal:
            spoil(t, x, *cond.values())
        return x0, eps


class UsersSystem(sm.System):
    """A user's ODE or SDE, with a drift and a noise scale that spoil what they are given."""

    def __init__(self, stochastic: bool, vandal: bool) -> None:
        super().__init__()
        self.stochastic, self.vandal = stochastic, vandal
        self.t_min, self.t_max = 0.0, 1.0
        self.kept = torch.empty(3, 4)

    def drift(self, t: Any, x: Tensor) -> Tensor:
        drift = -x * (1 + t if t.ndim == 0 else 1 + t[:, None])
        if self.vandal:
            drift = self.kept.copy_(drift) if x.shape == self.kept.shape else drift
            spoil(t, x)
        return drift

    def noise_scale(self, t: Any, x: Tensor) -> Tensor:
        scale = 0.1 * (1 + t if t.ndim == 0 else 1 + t[:, None]).expand(len(x), 1).clone()
        if self.vandal:
            spoil(t, x)
        return scale


@every_solver
def test_a_users_model_or_system_shares_nothing(name: str) -> None:
    solver = TABLE[name]
    effort: dict[str, Any] = {"rtol": 0.3, "atol": 0.3} if solver.adaptive else {"steps": 5}
    noise = {"generator": generator()} if solver.stochastic and not solver.deterministic else {}

    def of_model(vandal: bool) -> Tensor:
        return sm.sample(Users(vandal), (3, 4), name, generator=generator(), **effort).x

    def of_system(vandal: bool) -> Tensor:
        source = {key: generator() for key in noise}
        system = UsersSystem(solver.stochastic, vandal)
        return sm.solve(system, torch.ones(3, 4), (0.0, 1.0), name, **source, **effort).x

    for solve in (of_model, of_system)[: 1 if solver.diffusion_only else 2]:
        assert torch.equal(solve(True), solve(False))


class UsersPrior:
    """A prior that gives away its own tensor, and spoils what it is asked about."""

    def __init__(self) -> None:
        self.z = torch.randn(3, 4, generator=generator(2))

    def sample(self, sample_shape: Any, *, generator: Any = None) -> Tensor:
        return self.z

    def log_prob(self, value: Tensor) -> Tensor:
        found = -0.5 * value.clone().square().sum(1)
        spoil(value)
        return found


class UsersDivergence(sm.Hutchinson):
    """An estimator that spoils its points and its probes."""

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        drawn = super().draw(x, generator)
        spoil(x)
        return drawn

    def estimate(self, products: Any, drawn: Tensor | None) -> Any:
        assert drawn is not None
        found = super().estimate(products, drawn)
        spoil(products.point, drawn)
        return found


@pytest.mark.parametrize("trace", ["quadrature", "augmented"])
@pytest.mark.parametrize("name", ["adams-batch", "ode:dopri5", "rk-batch", "ode:rk4"])
def test_likelihoods_share_nothing(name: str, trace: str) -> None:
    solver = TABLE[name]
    if trace == "augmented" and solver.diffusion_only:
        return
    effort: dict[str, Any] = {"rtol": 0.1, "atol": 0.1} if solver.adaptive else {"steps": 8}
    if trace == "quadrature":
        effort["intervals"] = 12
    x = torch.randn(3, 4, generator=generator(1))

    def value(network: nn.Module, divergence: Any, prior: Any, callback: Any) -> Tensor:
        given, label = x.clone(), LABEL.clone()
        found = sm.log_prob(
            sm.ScoreModel(network, SDE).eval(), given, name, trace=trace, prior=prior,
            divergence=divergence, generator=generator(), callback=callback,
            cond={"label": label, "more": [torch.ones(1)]}, **effort,
        )  # fmt: skip
        assert torch.equal(given, x)
        assert torch.equal(label, LABEL)
        spoil(found.z)
        return found.value

    plain = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(4), 1.0), 1)
    constant = 2 * torch.log(torch.tensor(2 * torch.pi))
    wanted = value(Calm(), sm.Hutchinson(2), plain, None)
    got = value(Vandal(), UsersDivergence(2), UsersPrior(), vandal_callback)
    torch.testing.assert_close(got - constant, wanted, rtol=1e-5, atol=1e-4)
    same = value(Calm(), sm.Hutchinson(2), UsersPrior(), None)
    assert torch.equal(got, same)


def test_what_comes_back_shares_no_memory() -> None:
    """With the path, the input, the prior's tensor, and between latents and data."""
    model, prior = sm.ScoreModel(Calm(), SDE).eval(), UsersPrior()
    cond: dict[str, Any] = {"label": LABEL, "more": [torch.ones(1)]}
    z = prior.z.clone()
    for name in ("ode:dopri5", "ddim", "adams-batch"):
        out = sm.sample(model, (3, 4), name, prior=prior, return_log_prob=True, cond=cond)
        assert out.log_prob is not None
        memory = {v.untyped_storage().data_ptr() for v in (out.x, out.log_prob.z, prior.z)}
        assert len(memory) == 3
        spoil(out.log_prob.z)
        assert torch.equal(prior.z, z)
    x = torch.randn(3, 4, requires_grad=True)
    flow = sm.ProbabilityFlow(model, cond=cond)
    sol = sm.solve(flow, x, (1.0, 0.5), "ode:rk4", steps=3, path=True)
    assert sol.path is not None
    before = sol.x.detach().clone()
    spoil(sol.path)
    assert torch.equal(sol.x, before)
    assert bool(x.isfinite().all())


def test_the_state_of_an_error_is_its_own() -> None:
    x = torch.randn(3, 4)
    given = x.clone().requires_grad_()

    class Broken(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x * torch.nan

    flow = sm.ProbabilityFlow(sm.ScoreModel(Broken(), SDE))
    for name in ("ode:dopri5", "ode:rk4", "ddim", "rk-batch"):
        with pytest.raises(sm.NonFiniteError) as caught:
            sm.solve(flow, given, (1.0, 0.5), name)
        spoil(caught.value.x)
        assert torch.equal(given, x)


def energy(vandal: bool) -> nn.Module:
    class Energy(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            value = (x.clone().square() * (1 + t.clone()[:, None])).sum(1)
            if vandal:
                spoil(t, x)
            return value

    return Energy()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "denoising": sm.losses.denoising_score_matching,
    "edm": lambda *a, **k: sm.losses.denoising_score_matching(*a, weighting="edm", **k),
    "implicit": sm.losses.implicit_score_matching,
    "sliced": sm.losses.sliced_score_matching,
    "finite differences": sm.losses.finite_difference_sliced,
    "simulated": lambda *a, **k: sm.losses.simulated_score_matching(*a, steps=4, **k),
    "penalty": sm.losses.fokker_planck_penalty,
    "likelihood": lambda *a, **k: sm.maximum_likelihood_loss(
        *a, intervals=12, rtol=0.1, atol=0.1, **k
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_share_nothing(name: str) -> None:
    """Also the gradient of the weights; times are the user's own tensor."""
    x0 = torch.randn(3, 4, generator=generator(1))

    def loss(network: nn.Module) -> list[Tensor]:
        given, model = x0.clone(), sm.ScoreModel(network, SDE, "x0")
        value = LOSSES[name](
            model,
            given,
            generator=generator(),
            cond={"label": LABEL.clone(), "more": [torch.ones(1)]},
        )
        value.backward()
        assert torch.equal(given, x0)
        return [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for got, wanted in zip(loss(Vandal()), loss(Calm()), strict=True):
        assert torch.equal(got, wanted)


def test_weightings_times_and_energies_share_nothing() -> None:
    x, t = torch.randn(3, 4), torch.full((3,), 0.5)

    def weight(vandal: bool) -> sm.losses.Weighting:
        def of_batch(batch: Any) -> Tensor:
            found = 1 + batch.t.clone()
            if vandal:
                spoil(batch.t, batch.xt, batch.x0, batch.noise)
            return found

        return sm.losses.noise_weighting(of_batch, "uniform")

    model = sm.ScoreModel(Calm(), SDE, "x0")
    cond: dict[str, Any] = {"label": LABEL, "more": [torch.ones(1)]}
    plain, spoilt = (
        sm.losses.denoising_score_matching(
            model, x, t, weighting=weight(vandal), generator=generator(), cond=cond
        )
        for vandal in (False, True)
    )
    assert torch.equal(plain, spoilt)
    scores = [sm.EnergyModel(energy(vandal), SDE).score(t, x) for vandal in (False, True)]
    assert torch.equal(*scores)
    assert torch.equal(t, torch.full((3,), 0.5))


class Squeezed(sm.SDE):
    """A user's SDE without a kernel."""

    def __init__(self, vandal: bool) -> None:
        super().__init__(t_min=0.1)
        self.vandal = vandal

    def f(self, t: Any, x: Tensor) -> Tensor:
        drift = -x.clone() * t.clone()
        if self.vandal:
            spoil(t, x)
        return drift

    def g(self, t: Any, x: Tensor) -> Tensor:
        scale = torch.ones_like(x) * t.clone()
        if self.vandal:
            spoil(t, x)
        return scale


def test_a_users_sde_shares_nothing() -> None:
    x = torch.randn(3, 4)

    class Score(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return -x * (1 + t[:, None])

    for name in ("ode:rk4", "ode:dopri5", "euler-maruyama", "sde:srk"):
        found = []
        for vandal in (False, True):
            model = sm.ScoreModel(Score(), Squeezed(vandal), "score")
            source = {} if name.startswith("ode") else {"generator": generator()}
            effort = {} if name == "ode:dopri5" else {"steps": 5}
            system: Any = sm.ReverseSDE(model, (4,)) if source else sm.ProbabilityFlow(model)
            found.append(sm.solve(system, x, (1.0, 0.2), name, **effort, **source).x)  # type: ignore[arg-type]
        assert torch.equal(*found)


class Careless(sm.VPSDE):
    """An SDE whose sigma rescales the times that it is given."""

    def sigma(self, t: Any) -> Tensor:
        return super().sigma(t.mul_(2)) if isinstance(t, Tensor) else super().sigma(2 * t)


def test_an_sde_that_changes_its_times_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma of Careless changes its times in place.*t \* 2"):
        sm.ScoreModel(Calm(), Careless())


def test_bits_per_dimension_share_nothing() -> None:
    """With a transform that spoils what it is given."""
    from torch.distributions import Transform, constraints

    class Shift(Transform):
        domain = codomain = constraints.independent(constraints.real, 1)
        bijective = True

        def __init__(self, vandal: bool) -> None:
            super().__init__()
            self.vandal = vandal

        def _call(self, x: Tensor) -> Tensor:
            y = 2 * x
            if self.vandal:
                spoil(x)
            return y

        def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
            found = 0 * (x - y / 2).sum(1) + 4 * torch.tensor(2.0).log()
            if self.vandal:
                spoil(x, y)
            return found

    images = torch.randint(0, 4, (3, 4), generator=generator())
    model = sm.GaussianMixture(torch.zeros(1, 4), 0.5).score_model(SDE)
    found = [
        sm.bits_per_dim(
            model, images, levels=4, transform=Shift(vandal), generator=generator(), repeats=2,
            rtol=0.1, atol=0.1, intervals=12,
        ).per_image
        for vandal in (False, True)
    ]  # fmt: skip
    assert torch.equal(*found)


class Attributes(dict[str, Any]):
    """Conditioning that is read by attributes."""

    __getattr__ = dict.__getitem__


@dataclass(frozen=True)
class Fields:
    a: Tensor


class Entry(NamedTuple):
    a: Tensor


@pytest.mark.parametrize("kind", [Attributes, Fields, Entry])
def test_conditioning_in_containers_of_a_class_is_copied_with_its_class(kind: Any) -> None:
    given = kind(a=torch.ones(2))
    other = copied({"cond": [given]})["cond"][0]
    assert type(other) is kind
    spoil(other.a)
    assert torch.equal(given.a, torch.ones(2))
