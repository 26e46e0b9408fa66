"""Likelihoods by quadrature: right, with errors that cover, and to the tolerance asked for."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(dim: int) -> sm.GaussianMixture:
    g = generator(5)
    means = torch.randn(6, dim, generator=g, dtype=torch.float64)
    return sm.GaussianMixture(means, 0.1 + 0.3 * torch.rand(6, generator=g, dtype=torch.float64))


def case(dim: int, sde: sm.GaussianSDE, n: int) -> tuple[sm.Model, Tensor, Tensor, object]:
    """A model, points, their true log-density, and the prior with which the flow has it."""
    target = mixture(dim)
    data = target.diffuse(sde, sde.t_min)
    x = data.sample(n, generator=generator(1))
    return target.score_model(sde), x, data.log_prob(x), target.diffuse(sde, sde.t_max)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("dim", [2, 64])
def test_truth_lies_within_the_reported_error(dim: int, sde: sm.GaussianSDE) -> None:
    """Exact and stochastic traces, two tolerances: 93% of 40 points each, 1,200 points in all.

    If the errors covered 99% of the time, fewer than 38 of 40 would have a chance of 7e-3; the
    seed is fixed.
    """
    model, x, truth, prior = case(dim, sde, 40)
    for tol in (0.1, 0.01):
        divergences: list[sm.Exact | sm.Hutchinson] = [sm.Exact()]
        if tol == 0.1:
            divergences.append(sm.Hutchinson(4, "gaussian"))
        for divergence in divergences:
            lp = sm.log_prob(
                model, x, tol=tol, divergence=divergence, prior=prior, generator=generator(2)
            )  # fmt: skip
            assert lp.error.max() <= tol
            assert ((lp.value - truth).abs() <= lp.error).double().mean() >= 0.93


def test_error_bar_of_fresh_probes_covers_and_is_far_below_that_of_fixed_ones() -> None:
    """400 estimates of one point: no bias (6e-7), and 95% within two standard errors (1e-5)."""
    factors = torch.randn(2, 16, 16, generator=generator(), dtype=torch.float64) / 8
    covariances = factors @ factors.mT + 0.1 * torch.eye(16, dtype=torch.float64)
    means = torch.randn(2, 16, generator=generator(3), dtype=torch.float64)
    target = sm.GaussianMixture(means, covariances=covariances)
    model = target.score_model(sm.VPSDE(), (1, 4, 4))
    point = target.sample(1, generator=generator(4)).reshape(1, 1, 4, 4)
    truth = sm.log_prob(model, point).value
    points = point.repeat(400, 1, 1, 1)
    got = {
        solver: sm.log_prob(
            model, points, solver, divergence=sm.Hutchinson(4), generator=generator(1),
            estimate_solver_error=False,
        )
        for solver in ("adams-batch", "ode:dopri5")
    }  # fmt: skip
    fresh, fixed = (lp.value - truth for lp in got.values())
    assert fresh.mean().abs() < 5 * fresh.std() / math.sqrt(400) + 1e-3
    inside = int((fresh.abs() <= 2 * got["adams-batch"].stderr).sum())
    assert stats.binom.ppf(5e-6, 400, 0.95) <= inside
    assert fresh.var() < 0.5 * fixed.var()


def test_more_is_spent_only_where_it_is_needed() -> None:
    model, x, truth, prior = case(64, sm.VPSDE(), 32)
    loose, tight = (sm.log_prob(model, x, tol=tol, prior=prior) for tol in (1.0, 1e-3))
    assert loose.nfe < 0.5 * tight.nfe
    off = (tight.value - truth).abs()  # the error at 95% is two standard errors
    assert off.max() < 2e-3
    assert float((off <= tight.error).double().mean()) >= 0.9
    # A sample's own answer does not depend on what its batch-mates need.
    alone = sm.log_prob(model, x[:1], tol=1e-3, prior=prior)
    torch.testing.assert_close(alone.value, tight.value[:1], rtol=0, atol=2e-3)


def test_tolerance_is_reached_on_a_network_with_noisy_traces() -> None:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((12,), width=32, depth=1).double().eval()
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-4), event_shape=(12,))
    x = 0.5 * torch.randn(6, 12, generator=generator(), dtype=torch.float64)
    truth = sm.log_prob(model, x, rtol=1e-7, atol=1e-7, intervals=384).value
    for divergence in (sm.Hutchinson(2), sm.Hutchinson(1), "exact"):
        lp = sm.log_prob(model, x, tol=0.3, divergence=divergence, generator=generator(1))
        assert lp.error.max() <= 0.3
        assert (lp.value - truth).abs().max() <= 0.3


@pytest.mark.parametrize(
    ("solver", "way"),
    [("adams-batch", "direct"), ("ode:dopri5", "direct"), ("ode:dopri5", "adjoint")],
)
def test_gradient_is_that_of_finite_differences_in_the_parameters(solver: str, way: str) -> None:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((2,), width=8, depth=1).double().eval()
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-2), event_shape=(2,))
    with torch.no_grad():  # its last layer begins with zeros
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(2)))
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    weight = next(network.parameters())

    def value(gradient: str | None) -> Tensor:
        return sm.log_prob(
            model, x, solver, rtol=1e-9, atol=1e-9, gradient=gradient,
            estimate_solver_error=False, generator=generator(3),
        ).value.sum()  # fmt: skip

    (gradient,) = torch.autograd.grad(value(way), weight)
    direction = torch.randn(weight.shape, generator=generator(1), dtype=torch.float64)
    ends = []
    for sign in (-1, 1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-5)
            ends.append(value(None))
            weight.sub_(direction, alpha=sign * 1e-5)
    slope = (ends[1] - ends[0]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_density_to_a_tolerance_is_unbiased() -> None:
    """Directions with exact traces and random probes outside of them: 12 draws of two points."""
    model, x, _, prior = case(64, sm.VPSDE(), 2)

    def gradient(seed: int, **options: object) -> Tensor:
        point = x.clone().requires_grad_()
        lp = sm.log_prob(
            model, point, prior=prior, gradient="direct", generator=generator(seed), **options
        )
        return torch.autograd.grad(lp.value.sum(), point)[0]

    truth = gradient(0, divergence="exact", rtol=1e-5, atol=1e-5)
    drawn = torch.stack([gradient(seed, tol=0.3) for seed in range(12)])
    off = (drawn.mean(0) - truth).abs()
    assert (off <= 6 * drawn.std(0) / math.sqrt(12) + 0.02).double().mean() > 0.98


def test_maximum_likelihood_fine_tunes_a_model() -> None:
    """A score of the wrong scale: its likelihood rises towards the truth, with XTrace too."""
    data = sm.GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), 0.5).sample(
        64, generator=generator()
    )

    class Scaled(torch.nn.Module):
        """The noise of Gaussian data of a learned spread."""

        def __init__(self) -> None:
            super().__init__()
            self.log_std = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            sde = sm.VPSDE()
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            return sigma * x / ((alpha * self.log_std.exp()).square() + sigma.square())

    network = Scaled()
    model = sm.ScoreModel(network, sm.VPSDE(), prediction="eps")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for step in range(25):
        divergence = sm.Exact() if step % 2 else sm.XTrace(2)
        lp = sm.log_prob(
            model, data, divergence=divergence, gradient="direct",
            rtol=1e-2, atol=1e-2, intervals=20,
        )  # fmt: skip
        optimizer.zero_grad()
        (-lp.value.mean()).backward()
        optimizer.step()
    wanted = float(data.square().mean().sqrt().log())  # of maximum likelihood
    assert network.log_std.item() == pytest.approx(wanted, abs=0.05)


def line(size: int, batch: int) -> tuple[sm.Model, Tensor, Tensor]:
    """A network for data near a line, whose Jacobian is c I plus rank one; points, their density.

    The flow is linear, so its density is in closed form.
    """
    sde = sm.VPSDE()
    along = torch.randn(size, generator=generator(), dtype=torch.float64)
    along /= along.norm()

    class Line(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            part = (x @ along)[:, None] * along
            near, far = ((alpha * s).square() + sigma.square() for s in (0.01, 1.0))
            return sigma * ((x - part) / near + part / far)

    noise = torch.randn(batch, size, generator=generator(1), dtype=torch.float64)
    on = (noise @ along)[:, None] * along
    x = on + 0.01 * (noise - on)
    ends = sde.times([sde.t_min, sde.t_max])
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    near, far = (((alpha * s).square() + sigma.square()).sqrt() for s in (0.01, 1.0))
    part = (x @ along)[:, None] * along
    z = (far[1] / far[0]) * part + (near[1] / near[0]) * (x - part)
    growth = (far[1] / far[0]).log() + (size - 1) * (near[1] / near[0]).log()
    truth = -0.5 * z.square().sum(1) - 0.5 * size * math.log(2 * math.pi) + growth
    return sm.ScoreModel(Line(), sde, event_shape=(size,)), x, truth


@pytest.mark.parametrize("divergence", ["auto", sm.Hutchinson(2, "gaussian"), sm.XTrace(4)])
def test_probes_that_are_chosen_by_their_variance_are_unbiased(
    divergence: str | sm.Divergence,
) -> None:
    """A Jacobian of rank one, where an estimate and its spread are small together.

    300 points in 48 dimensions: the mean signed error is 0 within 4 standard errors, and 90% are
    covered, which has a chance of 1e-4 to fail at 95%.
    """
    model, x, truth = line(48, 300)
    lp = sm.log_prob(model, x, tol=0.5, divergence=divergence, generator=generator(2))
    off = lp.value - truth
    assert off.mean().abs() < 4 * off.std() / math.sqrt(300) + lp.solver_error.mean()
    assert float((off.abs() <= lp.error).double().mean()) > 0.9
    assert float(lp.error.max()) <= 0.5


def test_a_tolerance_causes_no_bias() -> None:
    """A mixture whose traces are skewed where modes merge: 3,000 points in 16 dimensions.

    What is left at a tolerance of 1 nat is the mean error of the paths, 0.005 nats. Estimates that
    chose nodes by their own traces were 0.08 off.
    """
    model, x, truth, prior = case(16, sm.VPSDE(), 3000)
    lp = sm.log_prob(
        model, x, tol=1.0, divergence=sm.Hutchinson(2), prior=prior, generator=generator(1)
    )
    off = lp.value - truth
    assert off.mean().abs() < 4 * off.std() / math.sqrt(len(x)) + 0.006
    assert float((lp.error > 1).double().mean()) < 0.01


def test_a_jacobian_of_low_rank_costs_few_products() -> None:
    """Less than 10 at a node, whose exact trace takes 128."""
    model, x, truth = line(128, 64)
    lp = sm.log_prob(model, x, tol=0.1, generator=generator(2))
    assert lp.vjps < 400
    assert float((lp.value - truth).abs().max()) < 0.1


class Rough(torch.nn.Module):
    """A random network of the time's sines up to ``frequency`` radians: no score of anything."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        draw = generator(int(frequency))
        self.rates = frequency * torch.rand(12, generator=draw, dtype=torch.float64)
        self.first = torch.randn(14, 32, generator=draw, dtype=torch.float64) / math.sqrt(14)
        self.last = torch.randn(32, 2, generator=draw, dtype=torch.float64) / math.sqrt(32)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        features = torch.cat([x, (t[:, None] * self.rates).sin()], 1)
        return x / (1 + 0.5 * x.square()) + (features @ self.first).tanh() @ self.last


@pytest.mark.parametrize("frequency", [10.0, 100.0])
def test_errors_cover_on_networks_that_are_no_scores(frequency: float) -> None:
    """150 points, three tolerances and two others solvers, 88% each; a path and a trace of 1e-9.

    At 95% fewer than 88% have a chance of 3e-4 each.
    """
    sde = sm.VPSDE(t_min=1e-3)
    model = sm.ScoreModel(Rough(frequency), sde, event_shape=(2,))
    x = torch.randn(150, 2, generator=generator(), dtype=torch.float64)
    exact = sm.log_prob(
        model, x, "scipy:DOP853", trace="augmented", rtol=1e-9, atol=1e-9,
        estimate_solver_error=False,
    ).value  # fmt: skip
    settings: list[dict[str, object]] = [{"tol": tol} for tol in (1.0, 0.1, 0.01)]
    settings += [
        {"solver": "dpmpp-2m", "steps": 80, "intervals": 96},
        {"solver": "ode:dopri5", "rtol": 1e-3, "atol": 1e-3},
    ]
    for options in settings:
        lp = sm.log_prob(model, x, generator=generator(1), **options)  # type: ignore[arg-type]
        known = ~lp.error.isnan()
        assert float(known.double().mean()) > 0.6
        covered = ((lp.value - exact).abs() <= lp.error)[known]
        assert float(covered.double().mean()) > 0.88, options
        assert bool((lp.error[known] <= options.get("tol", math.inf)).all())  # type: ignore[operator]


def test_rounding_of_single_precision_is_in_the_error() -> None:
    """Data 100 from the origin and 0.01 wide: float32 knows no more than 3e-3 nats or so."""
    means = 100 + 0.05 * torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    narrow = sm.GaussianMixture(means.float(), 0.01)
    precise = sm.GaussianMixture(means.float().double(), 0.01)
    sde = sm.VPSDE()
    data = precise.diffuse(sde, sde.t_min)
    x = data.sample(100, generator=generator(1)).float()
    lp = sm.log_prob(
        narrow.score_model(sde), x, tol=0.01, prior=narrow.diffuse(sde, sde.t_max),
        generator=generator(2),
    )  # fmt: skip
    off = (lp.value - data.log_prob(x.double())).abs()
    assert off.mean() > 1e-3
    assert float((off <= lp.error).double().mean()) > 0.85


def test_reasons_are_given_for_errors_that_are_not_known() -> None:
    model, x, *_ = case(2, sm.VPSDE(), 4)
    assert sm.log_prob(model, x, tol=0.3).reason == ""
    few = sm.log_prob(model, x, "ddim", steps=3)
    assert bool(few.solver_error.isnan().all())
    assert "no two coarser solves" in few.reason
    assert "more steps=" in few.reason
    loose = sm.log_prob(model, x, "ode:dopri5", rtol=0.1, atol=0.1)
    assert "smaller rtol= and atol=" in loose.reason
    single = sm.log_prob(model, x, "ode:dopri5", divergence="hutchinson")
    assert "single probe" in single.reason
    off = sm.log_prob(model, x, estimate_solver_error=False)
    assert "estimate_solver_error=False" in off.reason
