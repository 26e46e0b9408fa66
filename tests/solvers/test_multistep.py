"""Multistep families against closed forms: exact cases, integrals, and what they have in common."""

from __future__ import annotations

import math

import pytest
import torch
from support.marginals import ProductMixture
from torch import Tensor

import sde_models as sm
from sde_models.solvers.multistep.adams_weights import lagrange_integrals, predictor_weights
from sde_models.solvers.multistep.dpm_solver import DPMSolver2M, DPMSolver3M
from sde_models.solvers.multistep.exponential_adams import exponential_quadrature, noise_quadrature
from sde_models.solvers.multistep.flow_adams import velocity_quadrature
from sde_models.solvers.multistep.unipc import UniPC
from sde_models.solvers.problem import Scales

SDES = [sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE()]
EXPONENTIAL = ["exp-adams-3", "exp-abm-4", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "ddim"]


def scales_of(sde: sm.GaussianSDE, steps: int, t0: float = 0.9, t1: float = 0.1) -> Scales:
    t = sm.grids.quadratic_grid(sde, t0, t1, steps)
    return Scales(sde.alpha(t), sde.sigma(t), sde.log_snr(t), sde.data_std)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", EXPONENTIAL)
def test_solvers_of_x0_are_exact_for_one_point(name: str, sde: sm.GaussianSDE) -> None:
    """The estimate of x0 is constant, so any grid, of one step even, ends at the exact flow."""
    point = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    model = sm.GaussianMixture(point, 1e-9).score_model(sde)
    x = sde.perturb(0.9, point, torch.tensor([[0.7, 0.1]], dtype=torch.float64))
    for grid in ([0.9, 0.1], [0.9, 0.5, 0.45, 0.1]):
        got = sm.solve(sm.ProbabilityFlow(model), x, (0.9, 0.1), name, grid=grid).x
        t = torch.tensor([0.9, 0.1], dtype=torch.float64)
        (a0, a1), (s0, s1) = sde.alpha(t), sde.sigma(t)
        torch.testing.assert_close(got, a1 * point + s1 / s0 * (x - a0 * point))


@pytest.mark.parametrize("name", ["flow-adams-2", "flow-adams-4", "flow-abm-3", "flow-abm-5"])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_velocity_solvers_are_exact_for_one_point(name: str, sde: sm.GaussianSDE) -> None:
    """The path of one point is straight, so its velocity is constant."""
    point = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    model = sm.GaussianMixture(point, 1e-9).score_model(sde)
    noise = torch.tensor([[0.7, 0.1]], dtype=torch.float64)
    x = sde.perturb(0.9, point, noise)
    got = sm.solve(sm.ProbabilityFlow(model), x, (0.9, 0.1), name, grid=[0.9, 0.3, 0.1]).x
    torch.testing.assert_close(got, sde.perturb(0.1, point, noise))


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0, -1.0])
def test_integrals_of_polynomials_against_the_kernel(rate: float) -> None:
    """Three nodes integrate 1, tau and tau^2 exactly; the integrals are known in closed form."""
    nodes = torch.tensor([[1.3, 0.6, 0.2]], dtype=torch.float64)
    start, end = 1.3, 2.0
    ends = torch.tensor([[start], [end]], dtype=torch.float64)
    weights = lagrange_integrals(nodes, *ends, rate)[0]
    h = end - start
    if rate:
        decay = math.exp(-rate * h)
        exact = [1 - decay, end - start * decay - (1 - decay) / rate]
        exact.append(end**2 - start**2 * decay - 2 / rate * exact[1])
    else:
        exact = [h, (end**2 - start**2) / 2, (end**3 - start**3) / 3]
    for power, value in enumerate(exact):
        assert float(weights @ nodes[0] ** power) == pytest.approx(value, rel=1e-12)


def test_the_three_quadratures_say_the_same_of_exact_estimates() -> None:
    """x0, eps and velocity of a straight path, integrated over one step, give its end."""
    sde = sm.VPSDE(data_std=0.7)
    scales = scales_of(sde, 1)
    x0, eps = 0.4, -1.1
    start = scales.alpha[0] * x0 + scales.sigma[0] * eps
    end = scales.alpha[1] * x0 + scales.sigma[1] * eps
    for quadrature in (
        exponential_quadrature(scales), noise_quadrature(scales), velocity_quadrature(scales)
    ):  # fmt: skip
        estimate = quadrature.of_x0[0] * x0 + quadrature.of_eps[0] * eps
        step = quadrature.state[0] * start + predictor_weights(quadrature, 1)[0, 0] * estimate
        assert float(step) == pytest.approx(float(end), rel=1e-12)


def test_first_order_is_ddim() -> None:
    scales = scales_of(sm.VPSDE(), 12)
    adams = sm.make_solver("exp-adams-1").weights(scales, 0.0)  # type: ignore[attr-defined]
    ddim = sm.make_solver("ddim").weights(scales, 0.0)  # type: ignore[attr-defined]
    torch.testing.assert_close(adams.state, ddim.state)
    torch.testing.assert_close(adams.estimates, ddim.estimates)


def test_third_order_dpm_solver_is_exponential_adams() -> None:
    scales = scales_of(sm.VPSDE(), 12)
    adams = sm.make_solver("exp-adams-3").weights(scales, 0.0)  # type: ignore[attr-defined]
    torch.testing.assert_close(DPMSolver3M().weights(scales, 0.0).estimates, adams.estimates)


def test_dpm_solver_2m_as_the_paper_writes_it() -> None:
    """One step of algorithm 2 of Lu et al. 2022, and of its SDE form, by hand."""
    scales = scales_of(sm.VPSDE(), 3)
    lam = 0.5 * scales.log_snr
    h, before = float(lam[3] - lam[2]), float(lam[2] - lam[1])
    r = before / h
    new, old = 0.3, -0.8
    d = (1 + 1 / (2 * r)) * new - 1 / (2 * r) * old
    for eta in (0.0, 1.0):
        weights = DPMSolver2M(stochastic=eta > 0).weights(scales, eta)
        got = weights.state[2] * 1.7 + weights.estimates[2] @ scales.alpha.new_tensor([new, old])
        sigma, alpha = scales.sigma, scales.alpha
        want = sigma[3] / sigma[2] * math.exp(-(eta**2) * h) * 1.7
        want = want - alpha[3] * math.expm1(-(1 + eta**2) * h) * d
        assert float(got) == pytest.approx(float(want), rel=1e-12)
    assert weights.noise is not None
    assert float(weights.noise[2]) == pytest.approx(
        float(sigma[3]) * math.sqrt(-math.expm1(-2 * h)), rel=1e-12
    )


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_solves_the_conditions_of_the_paper(variant: str) -> None:
    """The corrector of UniPC-2 by its linear system (equation 5 of Zhao et al. 2023)."""
    scales = scales_of(sm.VPSDE(), 5)
    weights = UniPC(2, variant=variant).weights(scales, 0.0)
    lam = 0.5 * scales.log_snr
    k = 2  # the step from node 2 to node 3
    h = float(lam[k + 1] - lam[k])
    r = [float(lam[k - 1] - lam[k]) / h, 1.0]
    b = h if variant == "bh1" else -math.expm1(-h)
    phi = [-math.expm1(-h) / h]  # integrals of e^{-(h - s)} s^n / h^(n+1), n = 0, 1, 2
    for n in (1, 2):
        phi.append((1 - n * phi[-1]) / h)
    matrix = torch.tensor([[1.0, 1.0], r], dtype=torch.float64)
    rho = torch.linalg.solve(matrix, h / b * torch.tensor([phi[1], phi[2]], dtype=torch.float64))
    assert weights.corrector is not None
    end, here, past = weights.corrector[k] / scales.alpha[k + 1]
    assert float(end) == pytest.approx(float(b * rho[1] / r[1]), rel=1e-9)
    assert float(past) == pytest.approx(float(b * rho[0] / r[0]), rel=1e-9)
    assert float(here + end + past) == pytest.approx(-math.expm1(-h), rel=1e-9)
    predicted = weights.estimates[k] / scales.alpha[k + 1]
    assert float(predicted[1]) == pytest.approx(b * 0.5 / r[0], rel=1e-9)


@pytest.mark.parametrize(
    "name", ["exp-abm-4", "flow-abm-4", "unipc-3", "exp-adams-4", "flow-abm-5"]
)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_few_steps_are_taken_as_far_as_they_go(name: str, steps: int) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(4, 0.5, torch.Generator().manual_seed(0))
    got = sm.solve(exact.flow(), x, (0.5, 0.4), name, steps=steps, path=True)
    assert got.accepted == steps
    rounds = min(sm.make_solver(name).order - 2, steps - 1)  # of taking the first steps again
    assert got.nfe == steps + sum(range(int(rounds)))
    error = (got.x - exact.flow_map(x, 0.5, 0.4)).abs().max()
    assert error < 0.02 / steps**2


def test_bound_on_amplification_keeps_growing_steps_tame() -> None:
    """Steps that grow three-fold: without the bound the predictor extrapolates beyond use."""
    sde = sm.VPSDE()
    lengths = 3.0 ** torch.arange(7, dtype=torch.float64)
    angle = torch.linspace(0, 1, 2, dtype=torch.float64)[1] * lengths.cumsum(0) / lengths.sum()
    t = 0.9 - 0.85 * torch.cat([angle.new_zeros(1), angle])
    scales = Scales(sde.alpha(t), sde.sigma(t), sde.log_snr(t), 1.0)
    quadrature = velocity_quadrature(scales)
    free = predictor_weights(quadrature, 3)
    held = predictor_weights(quadrature, 3, amplification=5.0)

    def amplification(weights: Tensor) -> float:
        return float((weights.abs().sum(1) / weights.sum(1).abs()).max())

    assert amplification(free) > 10
    assert amplification(held) <= 5
    torch.testing.assert_close(free.sum(1), held.sum(1))


@pytest.mark.parametrize("estimate", ["x0", "eps"])
def test_either_estimate_converges(estimate: str) -> None:
    exact = ProductMixture(sm.VPSDE(), (2,))
    x = exact.sample(16, 1.0, torch.Generator().manual_seed(0))
    truth = exact.flow_map(x, 1.0, 1e-3)
    for family in ("exp-adams-3", "exp-abm-4"):
        solver = sm.make_solver(family, estimate=estimate)
        got = sm.solve(exact.flow(), x, (1.0, 1e-3), solver, steps=100).x
        assert (got - truth).abs().max() < 5e-4


def test_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="estimate must be 'x0' or 'eps', got 'v'"):
        sm.make_solver("exp-abm-4", estimate="v")
    with pytest.raises(ValueError, match="variant must be 'bh1' or 'bh2'"):
        sm.make_solver("unipc-2", variant="bh3")
    with pytest.raises(ValueError, match="did you mean 'amplification'"):
        sm.make_solver("flow-abm-4", amplificaton=3)
    with pytest.raises(ValueError, match="must be positive"):
        sm.make_solver("flow-abm-4", amplification=0)


@pytest.mark.parametrize("name", ["dpmpp-2m", "flow-abm-4", "dpmpp-2m-sde"])
def test_solvers_made_for_diffusion_refuse_other_equations(name: str) -> None:
    class Rotation(sm.System):
        stochastic = name.endswith("sde")
        t_min, t_max = 0.0, 1.0

        def drift(self, t: object, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        ValueError, match=f"'{name}' needs alpha and sigma.*got Rotation: use one that"
    ):
        sm.solve(Rotation(), torch.ones(2, 2), (1.0, 0.0), name)


def test_remembered_weights_are_those_computed_anew() -> None:
    """Other nodes, another order or another bound are not mistaken for those before."""
    for steps in (6, 9):
        for name in ("flow-abm-3", "flow-abm-5", "exp-abm-4", "unipc-3", "exp-abm-4"):
            scales = scales_of(sm.VPSDE(), steps)
            first, again, other = (sm.make_solver(name).weights(scales, 0.0) for _ in range(3))  # type: ignore[attr-defined]
            again.estimates.zero_()
            torch.testing.assert_close(first.estimates, other.estimates, rtol=0, atol=0)
            torch.testing.assert_close(first.corrector, other.corrector, rtol=0, atol=0)
            assert first.estimates.abs().sum() > 0
    loose = predictor_weights(velocity_quadrature(scales), 3, amplification=1.0)
    assert not torch.equal(loose, predictor_weights(velocity_quadrature(scales), 3))


def test_weights_of_a_learned_schedule_carry_its_gradient() -> None:
    scales = scales_of(sm.VPSDE(), 5)
    sigma = scales.sigma.clone().requires_grad_()
    learned = Scales(scales.alpha, sigma, 2 * (scales.alpha / sigma).log(), scales.data_std)
    for _ in range(2):
        weights = sm.make_solver("flow-abm-4").weights(learned, 0.0)  # type: ignore[attr-defined]
        (gradient,) = torch.autograd.grad(weights.estimates.square().sum(), sigma)
        assert gradient.abs().sum() > 0
