"""log_prob against closed forms, its estimators for bias, its error bars for coverage."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow_log_prob(exact: ProductMixture, x: Tensor) -> Tensor:
    """Closed form of the density that the flow defines.

    The exact flow carries p at t_min into p at t_max, so its log-determinant is the difference of
    their log-densities; the prior then takes the place of p at t_max.
    """
    sde = exact.sde
    z = exact.flow_map(x, sde.t_min, sde.t_max)
    return (
        exact.mixture.diffuse(sde, sde.t_min).log_prob(x)
        - exact.mixture.diffuse(sde, sde.t_max).log_prob(z)
        + sde.prior(exact.event_shape).log_prob(z)
    )


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("event_shape", [(2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("solver", ["ode:dopri5", "scipy:LSODA", "scipy:DOP853"])
def test_exact_trace_against_the_closed_form(
    sde: sm.GaussianSDE, event_shape: tuple[int, ...], solver: str
) -> None:
    exact = ProductMixture(sde, event_shape)
    x = exact.sample(6, sde.t_min, generator())
    lp = sm.log_prob(exact.model, x, solver, rtol=1e-8, atol=1e-8)
    assert (lp.value - flow_log_prob(exact, x)).abs().max() < 1e-5
    assert torch.equal(lp.stderr, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(lp.z, exact.flow_map(x, sde.t_min, sde.t_max), rtol=1e-5, atol=1e-5)


def test_ten_components_in_64_dimensions() -> None:
    g = generator(1)
    sde = sm.VPSDE()
    means = torch.randn(10, 64, generator=g, dtype=torch.float64)
    stds = 0.3 + 0.4 * torch.rand(10, 64, generator=g, dtype=torch.float64)
    mixture = sm.GaussianMixture(means, stds)
    model = mixture.score_model(sde)
    x = mixture.sample(8, generator=g)
    z = sm.encode(model, x, "ode:dopri8", rtol=1e-12, atol=1e-12).z
    truth = (
        mixture.diffuse(sde, sde.t_min).log_prob(x)
        - mixture.diffuse(sde, sde.t_max).log_prob(z)
        + sde.prior((64,)).log_prob(z)
    )
    loose = sm.log_prob(model, x, "ode:dopri5", divergence="exact", rtol=1e-5, atol=1e-5)
    assert (loose.value - truth).abs().mean() < 1e-2
    tight = sm.log_prob(
        model,
        x,
        "ode:dopri5",
        divergence="exact",
        rtol=1e-8,
        atol=1e-8,
        estimate_solver_error=False,
    )
    assert (tight.value - truth).abs().mean() < 1e-5
    assert tight.vjps == 64 * tight.nfe
    assert bool(tight.solver_error.isnan().all())


@pytest.mark.parametrize("solver", ["ode:rk4", "ode:heun3", "ode:explicit_adams"])
def test_fixed_steps_and_their_error_estimate(solver: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(20, exact.sde.t_min, generator())
    truth = flow_log_prob(exact, x)
    lp = sm.log_prob(exact.model, x, solver, steps=200)
    assert (lp.value - truth).abs().max() < 1e-3
    assert ((lp.value - truth).abs() <= lp.solver_error + 1e-9).double().mean() > 0.9


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_reported_solver_error_covers_the_error(sde: sm.GaussianSDE, tolerance: float) -> None:
    exact = ProductMixture(sde, (2,))
    x = exact.sample(60, sde.t_min, generator())
    lp = sm.log_prob(exact.model, x, "ode:dopri5", rtol=tolerance, atol=tolerance)
    covered = (lp.value - flow_log_prob(exact, x)).abs() <= lp.solver_error + 1e-9
    assert covered.double().mean() >= 0.85


def test_with_the_true_prior_the_density_is_the_data_density() -> None:
    sde = sm.VESDE(sigma_min=0.01, sigma_max=3.0)
    exact = ProductMixture(sde, (2,))
    x = exact.sample(10, 0.0, generator())
    true_prior = exact.mixture.diffuse(sde, 1.0)
    lp = sm.log_prob(exact.model, x, prior=true_prior, rtol=1e-8, atol=1e-8, intervals=128)
    truth = exact.mixture.diffuse(sde, 0.0).log_prob(x)
    assert (lp.value - truth).abs().max() < 1e-6


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_its_error_bar_covers(distribution: str) -> None:
    """400 independent estimates of 8 probes each, of one point.

    Bias: their mean within 5 standard errors, false-alarm rate 6e-7. Coverage: the share within
    the 95% interval of Student's t with 7 degrees of freedom, binomial bounds of false-alarm rate
    1e-5; the estimates of a single point are near normal since 16 coordinates add up.
    """
    g = generator()
    factors = torch.randn(2, 16, 16, generator=g, dtype=torch.float64) / 8
    covariances = factors @ factors.mT + 0.1 * torch.eye(16, dtype=torch.float64)
    means = torch.randn(2, 16, generator=g, dtype=torch.float64)
    mixture = sm.GaussianMixture(means, covariances=covariances)
    model = mixture.score_model(sm.VPSDE(), (1, 4, 4))
    point = mixture.sample(1, generator=g).reshape(1, 1, 4, 4)
    tolerance = {"rtol": 1e-5, "atol": 1e-5, "estimate_solver_error": False}
    truth = sm.log_prob(model, point, "ode:dopri5", **tolerance).value  # type: ignore[arg-type]
    lp = sm.log_prob(
        model, point.repeat(400, 1, 1, 1), "ode:dopri5", divergence=sm.Hutchinson(8, distribution),
        generator=generator(1), **tolerance,  # type: ignore[arg-type]
    )  # fmt: skip
    error = lp.value - truth
    assert error.mean().abs() < 5 * error.std() / math.sqrt(400) + 1e-3
    reach = stats.t.ppf(0.975, 7) * lp.stderr
    inside = int((error.abs() <= reach).sum())
    low, high = stats.binom.ppf([5e-6, 1 - 5e-6], 400, 0.95)
    assert low <= inside <= high
    assert lp.vjps == 8 * lp.nfe


def test_probes_come_from_the_generator_alone() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, exact.sde.t_min, generator())

    def run(seed: int) -> Tensor:
        return sm.log_prob(
            exact.model, x, divergence=sm.Hutchinson(2, "gaussian"), generator=generator(seed)
        ).value

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_one_probe_reports_its_error_where_it_is_fresh_at_each_node() -> None:
    """One that is fixed for the path cannot; 300 answers at 95%: fewer than 270 at 1e-4."""
    factor = torch.randn(8, 8, generator=generator(), dtype=torch.float64) / 3
    covariance = factor @ factor.mT + 0.1 * torch.eye(8, dtype=torch.float64)
    target = sm.GaussianMixture(
        torch.zeros(1, 8, dtype=torch.float64), covariances=covariance[None]
    )
    model, x = target.score_model(sm.VPSDE()), target.sample(1, generator=generator(1))
    truth = sm.log_prob(model, x).value
    points = x.expand(300, -1)
    arguments: dict[str, Any] = {"divergence": sm.Hutchinson(1), "generator": generator()}
    lp = sm.log_prob(model, points, **arguments)
    assert int(((lp.value - truth).abs() <= 2 * lp.stderr).sum()) >= 270
    fixed = sm.log_prob(model, points[:3], "ode:dopri5", **arguments)
    assert bool(fixed.stderr.isnan().all())


def test_energy_models_have_likelihoods() -> None:
    """The score is a gradient already, so the trace is a second derivative."""

    class Standard(torch.nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return 0.5 * x.square().sum(1)

    model = sm.EnergyModel(Standard(), sm.VPSDE())
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    truth = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
    lp = sm.log_prob(model, x, rtol=1e-8, atol=1e-8, intervals=96)
    torch.testing.assert_close(lp.value, truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("way", "solver"),
    [("direct", "adams-batch"), ("direct", "ode:dopri5"), ("adjoint", "ode:dopri5")],
)
def test_log_prob_is_differentiable(way: str, solver: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, exact.sde.t_min, generator()).requires_grad_()
    prior = exact.mixture.diffuse(exact.sde, exact.sde.t_max)
    nodes = {"intervals": 96} if solver == "adams-batch" else {}
    lp = sm.log_prob(
        exact.model, x, solver, rtol=1e-8, atol=1e-8, gradient=way, prior=prior, **nodes
    )  # fmt: skip
    (got,) = torch.autograd.grad(lp.value.sum(), x)
    point = x.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(
        exact.mixture.diffuse(exact.sde, exact.sde.t_min).log_prob(point).sum(), point
    )
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"solver": "sde:heun"}, ValueError, "is for SDEs"),
    ({"divergence": "exakt"}, ValueError, "did you mean 'exact'"),
    ({"x": torch.zeros(2, 3)}, ValueError, r"event shape \(3,\)"),
    ({"x": torch.zeros(2, 2, dtype=torch.int32)}, TypeError, "sm.bits_per_dim"),
    ({"steps": 5}, ValueError, "cannot use steps="),
    ({"trace": "quadrature", "intervals": 34}, ValueError, "multiple of 4, 12 or more, got 34"),
    ({"trace": "quadratur"}, ValueError, "did you mean 'quadrature'"),
    ({"solver": "ode:rk4", "intervals": 32}, ValueError, "no meaning for trace='augmented'"),
    ({"solver": "rk-batch", "intervals": 32}, ValueError, "no meaning for trace='augmented'"),
    ({"tol": -1.0}, ValueError, "tol must be a positive number of nats, got -1"),
    ({"tol": 0.0}, ValueError, "tol must be a positive number of nats, got 0"),
    ({"tol": 0.1, "rtol": 1e-3}, ValueError, "tol= chooses rtol by itself"),
    ({"tol": 0.1, "solver": "ode:dopri5"}, ValueError, "use solver='adams-batch'"),
    ({"solver": "ode:rk4", "rtol": 1e-3}, ValueError, "cannot use rtol="),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_bad_input_is_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    with pytest.raises(kind, match=message):
        sm.log_prob(exact.model, **{"x": torch.zeros(2, 2), **change})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.Dropout(0.1), r"network\.layer \(Dropout\) drops entries"),
        (torch.nn.BatchNorm1d(2), r"network\.layer \(BatchNorm1d\) normalises over the batch"),
    ],
    ids=str,
)
def test_models_whose_answers_are_no_functions_are_refused(
    layer: torch.nn.Module, message: str
) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.layer(x)

    model, x = sm.ScoreModel(Network(), sm.VPSDE(), prediction="eps").train(), torch.ones(2, 2)
    for function in (sm.log_prob, sm.encode, sm.decode):
        with pytest.raises(ValueError, match=message + r".*call model\.eval\(\) first"):
            function(model, x)
    sm.log_prob(model.eval(), x, rtol=0.1, atol=0.1, intervals=12)
    layer.train(False)
    model.train()
    layer.eval()
    sm.log_prob(model, x, rtol=0.1, atol=0.1, intervals=12)  # the rest may train


def test_inference_mode_gives_the_same_numbers() -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(3, exact.sde.t_min, generator())
    for divergence in ("exact", "hutchinson", "xtrace", "hutch++"):

        def value(x: Tensor, divergence: str = divergence) -> Tensor:
            return sm.log_prob(exact.model, x, divergence=divergence, generator=generator()).value

        plain = value(x)
        with torch.inference_mode():
            assert torch.equal(value(x + 0), plain)
