"""Randomly shifted nodes: weights, nesting, and the error that is read from the spectrum."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate

import sde_models as sm
from sde_models.likelihood.nodes import Nodes
from sde_models.likelihood.quadrature import integrate_traces, known_part, spectral_variance
from sde_models.likelihood.traces import Traces

SDES = [
    sm.VPSDE(), sm.SubVPSDE(), sm.VESDE(), sm.CosineSDE(), sm.FlowMatchingSDE(),
    sm.VPSDE(data_std=0.3),
]  # fmt: skip


def draw(count: int, batch: int, sde: sm.GaussianSDE = SDES[0], seed: int = 0) -> Nodes:
    return Nodes.draw(sde, count, torch.zeros(batch, 2), torch.Generator().manual_seed(seed))


def traces(value: torch.Tensor, stderr: float = 0.0) -> Traces:
    zero = torch.zeros_like(value)
    return Traces(value, zero + stderr, zero + 1, zero, zero > 0)


@pytest.mark.parametrize("count", [8, 13, 32])
def test_weights_are_exact_for_quadratic_polynomials(count: int) -> None:
    """Of the places, between which the rule is the trapezoidal one."""
    nodes = draw(count, 50)
    length = nodes.ends[0] - nodes.ends[1]
    for power in range(3):
        integral = (nodes.weights / nodes.rates * nodes.places**power).sum(0)
        torch.testing.assert_close(
            integral, torch.full_like(integral, length / (power + 1)), rtol=1e-10, atol=0
        )


def test_error_of_a_smooth_integrand_falls_with_the_fourth_power() -> None:
    errors = []
    for count in (16, 32, 64):
        nodes = draw(count, 200)
        length = nodes.ends[0] - nodes.ends[1]
        integral = (nodes.weights * (2 * nodes.positions).exp()).sum(0) / length
        errors.append(float((integral - math.expm1(2) / 2).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_finer_nodes_contain_coarser_ones(sde: sm.GaussianSDE) -> None:
    nodes = draw(8, 20, sde)
    finer = nodes.finer(3).finer(2)
    torch.testing.assert_close(nodes.among(finer.times), nodes.times)
    spread = nodes.spread(nodes.times, 6)
    assert torch.equal(nodes.among(spread), nodes.times)
    assert int((spread != 0).sum()) == nodes.times.numel()
    inside = (finer.times > sde.t_min) & (finer.times <= sde.t_max)
    assert bool(inside.all())


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_known_part_is_the_change_for_gaussian_data(sde: sm.GaussianSDE) -> None:
    """The numerical integral of the divergence of the flow of N(0, s^2), one dimension."""

    def divergence(t: float) -> float:
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        variance = (sde.alpha(time) * sde.data_std).square() + sde.sigma(time).square()
        (rate,) = torch.autograd.grad(0.5 * variance.log(), time)
        return float(rate)

    levels = torch.linspace(*draw(8, 1, sde).ends, 60, dtype=torch.float64)
    times = sde.t_from_log_snr(2 * levels).tolist()
    numerical = sum(integrate.quad(divergence, a, b, epsabs=1e-10)[0] for a, b in pairwise(times))
    assert known_part(draw(8, 1, sde)) == pytest.approx(numerical, abs=1e-5)


@pytest.mark.parametrize("count", [24, 48])
def test_noise_of_the_nodes_is_seen_in_the_spectrum(count: int) -> None:
    """Independent errors of unequal size on a smooth integrand, in 4,000 samples."""
    nodes = draw(count, 4000)
    size = 0.1 + (6 * nodes.positions).sin().square()
    noise = size * torch.randn(size.shape, generator=torch.Generator().manual_seed(1)).double()
    smooth = (nodes.positions * 2).exp()
    integral = integrate_traces(nodes, traces(smooth + noise), 2)
    total, _ = spectral_variance(nodes, smooth + noise)
    length = nodes.ends[0] - nodes.ends[1]
    off = integral.value - 2 * known_part(nodes) - length * math.expm1(2) / 2
    # The ends, where the window is small, have smaller errors than the rest.
    assert 1 < float(total.mean() / off.square().mean()) < 1.4
    assert float((off.abs() <= integral.error).double().mean()) > 0.94


@pytest.mark.parametrize("count", [24, 48])
@pytest.mark.parametrize("waves", [1, 20])
def test_oscillations_that_nodes_do_not_resolve_are_in_the_error(count: int, waves: int) -> None:
    """Sums of waves of random frequency, in step with the nodes or not.

    Of 4,000, 93% are covered; single waves, the worst there are, 89%: some are folded onto low
    frequencies everywhere. Equally spaced nodes cover 55% of those.
    """
    nodes = draw(count, 4000)
    length = nodes.ends[0] - nodes.ends[1]
    values, truth = torch.zeros_like(nodes.places), torch.zeros(4000, dtype=torch.float64)
    source = torch.Generator().manual_seed(1)
    for _ in range(waves):
        cycles = 10 + 190 * torch.rand(4000, generator=source, dtype=torch.float64)
        phase = 6.28 * torch.rand(4000, generator=source, dtype=torch.float64)
        values += (2 * math.pi * cycles * nodes.positions + phase).cos()
        truth += ((2 * math.pi * cycles + phase).sin() - phase.sin()) / (2 * math.pi * cycles)
    integral = integrate_traces(nodes, traces(values), 2)
    off = integral.value - 2 * known_part(nodes) - length * truth
    assert off.square().mean().sqrt() > 0.5
    covered = float((off.abs() <= integral.error).double().mean())
    assert covered > (0.89 if waves == 1 else 0.93)
