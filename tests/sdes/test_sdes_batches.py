"""SDEs on batches: each sample at its own time, kernels, refusals, and torchsde as it stands.

False-alarm rate of each statistical test: 1e-6, over seeds; the seeds are fixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchsde
from support.closed_forms import (
    F64,
    Hyperbolic,
    OnlyScales,
    assert_moments,
    euler_moments,
    every_sde,
    exact_moments,
    some_times,
)
from torch import Tensor

from sde_models._utils.shapes import Time
from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE

# Batches whose size is also an event dimension, and one whose size is not.
SHAPES = [(3, 3), (3, 3, 3, 3), (4, 1, 4, 4), (2, 4, 4), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_sde
def test_each_sample_has_its_own_time(sde: GaussianSDE, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, *shape, dtype=F64, generator=generator)
    t = torch.linspace(sde.t_min, sde.t_max, shape[0], dtype=F64)
    for call in (
        lambda t, x, noise: sde.f(t, x),
        lambda t, x, noise: sde.g(t, x),
        lambda t, x, noise: sde.drift(t, x),
        lambda t, x, noise: sde.noise_scale(t, x).expand_as(x),
        lambda t, x, noise: sde.perturb(t, x, noise),
    ):
        alone = [call(t[i], x[i : i + 1], noise[i : i + 1]) for i in range(len(x))]
        torch.testing.assert_close(call(t, x, noise), torch.cat(alone), rtol=1e-13, atol=1e-13)


@every_sde
def test_f_and_g_are_the_coefficients_on_the_state(sde: GaussianSDE) -> None:
    t, x = torch.tensor(0.4, dtype=F64), torch.randn(3, 1, 2, dtype=F64)
    assert torch.equal(sde.f(t, x), sde.drift_coefficient(t) * x)
    assert torch.equal(sde.g(t, x), sde.diffusion(t) * torch.ones_like(x))
    assert sde.f(0.4, x).dtype == sde.g(0.4, x).dtype == F64


@every_sde
def test_perturb_is_the_kernel(sde: GaussianSDE) -> None:
    x0, noise = torch.randn(2, 17, 2, dtype=F64)
    t = some_times(sde)
    wanted = [sde.alpha(s) * a + sde.sigma(s) * b for s, a, b in zip(t, x0, noise, strict=True)]
    torch.testing.assert_close(sde.perturb(t, x0, noise), torch.stack(wanted), rtol=1e-14, atol=0)


@every_sde
def test_f_and_g_carry_the_kernel_from_each_time_to_the_next(sde: GaussianSDE) -> None:
    """Mean and variance that f and g produce from the kernel at t_min are the kernel after it."""
    t, x0 = some_times(sde), torch.tensor([1.5, -0.5], dtype=F64)
    variance = sde.sigma(t).square()[:, None].expand(-1, 2)
    means, variances = exact_moments(sde.f, sde.g, sde.alpha(t[0]) * x0, variance[0], t)
    torch.testing.assert_close(means, sde.alpha(t)[:, None] * x0, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(variances, variance, rtol=1e-7, atol=1e-12)


@every_sde
@pytest.mark.parametrize("own", [False, True], ids=["itself", "only_scales"])
def test_simulated_marginals_are_the_kernel(sde: GaussianSDE, own: bool) -> None:
    """torchsde integrates the SDE as it stands; the bias of its Euler method is known exactly.

    One test at each of four times: 2.5e-7 each makes the 1e-6.
    """
    simulated = OnlyScales(sde) if own else sde
    steps, stops = (100, [5, 30, 60, 90]) if own else (400, [20, 120, 240, 360])
    span = (sde.t_max - sde.t_min) / steps
    grid = sde.t_min + span * torch.arange(steps + 1, dtype=F64)
    x0 = torch.tensor([1.5, -0.5], dtype=F64)
    noise = torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    start = sde.perturb(grid[0], x0.expand_as(noise), noise)
    ts = grid[[0, *stops]]
    bm = torchsde.BrownianInterval(ts[0], ts[-1], size=start.shape, dtype=F64, entropy=11, dt=span)
    path = torchsde.sdeint(simulated, start, ts, bm=bm, dt=span, method="euler")
    alpha, variance = sde.alpha(ts), sde.sigma(ts).square()
    means, variances = euler_moments(
        sde.f, sde.g, alpha[0] * x0, variance[0].expand(2), grid[: stops[-1] + 1]
    )
    for i, k in enumerate(stops, start=1):
        mean_bias = (means[k] - alpha[i] * x0).abs()
        bias = (variances[k] - variance[i]).abs()
        if not own:  # the allowance is no blank cheque
            assert (mean_bias < 0.01 + 0.02 * variance[i].sqrt()).all()
            assert (bias < 0.1 * variance[i]).all()
        assert_moments(
            path[i],
            alpha[i] * x0,
            variance[i].expand(2),
            false_alarm=2.5e-7,
            mean_bias=mean_bias,
            covariance_bias=bias,
        )


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_torchsde_methods_take_the_sde_in_either_sense(method: str, sde_type: str) -> None:
    """g does not depend on the state, so both senses have the same solution: the OU process."""
    if sde_type == "stratonovich":
        method = {"euler": "heun", "milstein": "milstein", "srk": "midpoint"}[method]
    sde = VPSDE(2.0, 2.0)  # dx = -x dt + sqrt(2) dB
    sde.sde_type = sde_type
    start = torch.full((4000, 2), 2.0, dtype=F64)
    ts = torch.tensor([0.0, 0.5], dtype=F64)
    levy = "space-time" if method == "srk" else "none"
    bm = torchsde.BrownianInterval(
        0.0, 0.5, size=start.shape, dtype=F64, entropy=5, levy_area_approximation=levy
    )
    end = torchsde.sdeint(sde, start, ts, bm=bm, dt=0.01, method=method)[-1]
    mean, variance = torch.full((2,), 2 * math.exp(-0.5)), torch.full((2,), 1 - math.exp(-1.0))
    # Euler and Milstein are off by at most h = 0.01 relative here.
    assert_moments(end, mean, variance, false_alarm=1e-6, mean_bias=0.01, covariance_bias=0.01)


class OrnsteinUhlenbeck(SDE):
    """dx = -x dt + g dB by f and g alone."""

    def f(self, t: Time, x: Tensor) -> Tensor:
        return -x

    def g(self, t: Time, x: Tensor) -> Tensor:
        return torch.full_like(x, 2**0.5)


class Geometric(OrnsteinUhlenbeck):
    """Noise in proportion to the state."""

    state_dependent_noise = True

    def g(self, t: Time, x: Tensor) -> Tensor:
        return 0.5 * x


def test_state_dependent_noise_runs_forward_but_not_back() -> None:
    sde = Geometric()
    start = torch.ones(4000, 1, dtype=F64)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=start.shape, dtype=F64, entropy=5)
    end = torchsde.sdeint(sde, start, torch.tensor([0.0, 1.0]), bm=bm, dt=0.01, method="euler")[-1]
    variance = math.exp(-2.0) * (math.exp(0.25) - 1)
    mean = torch.tensor([math.exp(-1.0)], dtype=F64)
    assert_moments(
        end, mean, torch.tensor([variance]), false_alarm=1e-6, mean_bias=2e-3, covariance_bias=1e-3
    )
    OrnsteinUhlenbeck().check_reversible()
    with pytest.raises(ValueError, match="Geometric declares state_dependent_noise"):
        sde.check_reversible()


class Stated(GaussianSDE):
    """Alpha and sigma as given."""

    def __init__(
        self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], t_min: float
    ) -> None:
        super().__init__(t_min=t_min, t_max=1.0)
        self.alpha, self.sigma = alpha, sigma


@pytest.mark.parametrize(
    ("sde", "where"),
    [
        (Stated(torch.ones_like, lambda t: 1.5 - torch.cos(6 * t), 0.0), r"t=0\.52"),
        (Stated(torch.ones_like, torch.ones_like, 0.1), "t=0.10"),
        (Stated(lambda t: 1 - t, lambda t: t, 0.0), "t=0:"),
        (Stated(lambda t: 1 - t, lambda t: t, 0.1), "t=1:"),
        (Stated(lambda t: 1 - 2 * t, lambda t: t, 0.1), r"t=0\.5"),
    ],
)
def test_what_is_no_noising_process_cannot_be_reversed(sde: GaussianSDE, where: str) -> None:
    with pytest.raises(ValueError, match=f"log-SNR of Stated must be finite and fall .*{where}"):
        sde.check_reversible()


@every_sde
def test_every_noising_process_can_be_reversed(sde: GaussianSDE) -> None:
    sde.check_reversible()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(t_min=-0.1), "0 <= t_min < t_max < inf, got t_min=-0.1"),
        (lambda: VPSDE(t_min=1.0), "0 <= t_min < t_max < inf"),
        (lambda: VESDE(t_max=math.inf), "0 <= t_min < t_max < inf"),
        (lambda: SDE(t_min=math.nan), "t_min=nan"),
        (lambda: VPSDE(0.0), "0 < beta_min <= beta_max, got beta_min=0.0"),
        (lambda: VPSDE(2.0, 1.0), "0 < beta_min <= beta_max"),
        (lambda: SubVPSDE(0.1, math.inf), "0 < beta_min <= beta_max"),
        (lambda: VESDE(0.0, 1.0), "0 < sigma_min < sigma_max, got sigma_min=0.0"),
        (lambda: VESDE(1.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: CosineSDE(t_max=1.0), "t_max of CosineSDE must lie below 1.*got 1.0"),
        (lambda: FlowMatchingSDE(t_max=1.5), "t_max of FlowMatchingSDE must lie below 1"),
        (lambda: VPSDE(data_std=0.0), "data_std must be positive and finite, got 0.0"),
        (lambda: VPSDE(data_std=math.nan), "data_std must be positive"),
    ],
)
def test_parameters_without_a_meaning_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("time_dtype", [torch.float32, F64], ids=str)
@every_sde
def test_both_ends_belong_to_the_span_in_either_precision(
    sde: GaussianSDE, dtype: torch.dtype, time_dtype: torch.dtype
) -> None:
    """Also for a float32 time with a float64 batch: 0.995 in float32 lies above 0.995."""
    x = torch.ones(2, 2, dtype=dtype)
    for end in (sde.t_min, sde.t_max):
        sde.perturb(torch.tensor([end, end], dtype=time_dtype), x, x)
        sde.perturb(end, x, x)


@pytest.mark.parametrize("bad", [-0.5, 2.5, math.nan, math.inf])
@every_sde
def test_times_outside_are_refused(sde: GaussianSDE, bad: float) -> None:
    x = torch.ones(2, 2)
    span = re.escape(f"[{sde.t_min:g}, {sde.t_max:g}] of {type(sde).__name__}")
    for t in (bad, torch.tensor(bad), torch.tensor([0.3, bad])):
        with pytest.raises(ValueError, match=f"{bad:g}.* outside .*{span}"):
            sde.perturb(t, x, x)


def test_perturb_refuses_what_does_not_fit() -> None:
    sde, x = VPSDE(), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"noise has shape \(3,\), expected that of x0: \(2, 3\)"):
        sde.perturb(0.5, x, torch.ones(3))
    with pytest.raises(ValueError, match=r"\(B,\) = \(2,\)"):
        sde.perturb(torch.tensor([0.1, 0.2, 0.3]), x, x)
    with pytest.raises(TypeError, match=r"torch\.int64.*floating"):
        sde.perturb(0.5, x.long(), x)


def test_what_a_subclass_must_define_is_said() -> None:
    x = torch.ones(1, 1)
    with pytest.raises(NotImplementedError, match=r"SDE must define f\(t, x\)"):
        SDE().f(0.5, x)
    with pytest.raises(NotImplementedError, match=r"SDE must define g\(t, x\)"):
        SDE().g(0.5, x)
    bare = GaussianSDE(t_min=0.0, t_max=1.0)
    with pytest.raises(NotImplementedError, match=r"GaussianSDE must define alpha\(t\)"):
        bare.alpha(0.5)
    with pytest.raises(NotImplementedError, match=r"GaussianSDE must define sigma\(t\)"):
        bare.sigma(0.5)


def test_a_schedule_written_for_tensors_answers_for_numbers() -> None:
    sde = Stated(lambda t: torch.exp(-t), lambda t: torch.sqrt(-torch.expm1(-2 * t)), 1e-3)
    assert sde.drift_coefficient(0.5).item() == pytest.approx(-1)
    assert sde.diffusion(0.5).item() == pytest.approx(2**0.5)
    assert sde.log_snr(0.5).item() == pytest.approx(-math.log(math.expm1(1.0)))


def test_a_users_own_coefficients() -> None:
    """By hand: a = -1 / (1 + t), g^2 = 2 sigma + 2 sigma^2 / (1 + t)."""
    sde, t = Hyperbolic(), some_times(Hyperbolic())
    sigma = 0.05 + t
    torch.testing.assert_close(sde.drift_coefficient(t), -1 / (1 + t))
    torch.testing.assert_close(sde.diffusion(t).square(), 2 * sigma + 2 * sigma**2 / (1 + t))


class Forgetful(VPSDE):
    """A VP with another sigma whose rate was forgotten."""

    def sigma(self, t: float | torch.Tensor) -> torch.Tensor:
        return 0.5 * super().sigma(t)


def test_a_rate_that_is_not_the_derivative_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma_rate of Forgetful is not the derivative of sigma"):
        Forgetful().check_reversible()

    class Detached(Hyperbolic):
        def alpha(self, t: float | torch.Tensor) -> torch.Tensor:
            return super().alpha(t).detach()

    with pytest.raises(ValueError, match="alpha_rate of Detached"):
        Detached().check_reversible()


def test_times_just_below_a_small_t_min_are_refused() -> None:
    sde, x = VPSDE(t_min=1e-7), torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="outside"):
        sde.perturb(-2e-7, x, x)


def test_log_snr_of_much_noise_does_not_overflow() -> None:
    """At B = 100.05 the log-SNR is -100.05, also in float32, where exp(B) is infinite."""
    assert VPSDE(0.1, 200.0).log_snr(1.0).item() == pytest.approx(-100.05)
