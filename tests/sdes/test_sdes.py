"""Every SDE's coefficients are those of its paper, to the last digits, in both precisions.

The reference is each paper's alpha and sigma at 50 digits, differentiated there; drift and
diffusion follow by the identities a = d log alpha / dt and g^2 = d sigma^2 / dt - 2 a sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.closed_forms import (
    BUILT_IN,
    F64,
    OnlyScales,
    every_built_in,
    every_sde,
    name_of,
    some_times,
)
from torch import Tensor, nn

from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.sdes.gaussian import GaussianSDE

mp = mpmath.MPContext()
mp.dps = 50
Number = mpmath.mpf
Scale = Callable[[Number], Number]


def _integrated_beta(t: Number) -> Number:
    return mp.mpf("0.1") * t + mp.mpf("19.9") * t**2 / 2


PAPERS: dict[str, tuple[Scale, Scale]] = {
    "VPSDE": (
        lambda t: mp.exp(-_integrated_beta(t) / 2),
        lambda t: mp.sqrt(1 - mp.exp(-_integrated_beta(t))),
    ),
    "SubVPSDE": (
        lambda t: mp.exp(-_integrated_beta(t) / 2),
        lambda t: 1 - mp.exp(-_integrated_beta(t)),
    ),
    "VESDE": (lambda t: mp.mpf(1), lambda t: mp.mpf("0.01") * mp.mpf(5000) ** t),
    "CosineSDE": (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.sin(mp.pi * t / 2)),
    "FlowMatchingSDE": (lambda t: 1 - t, lambda t: t),
}
QUANTITIES = ["alpha", "sigma", "alpha_rate", "sigma_rate", "drift_coefficient", "diffusion"]


def paper(sde: GaussianSDE, quantity: str) -> Scale:
    """The quantity as the paper's alpha and sigma imply it, at 50 digits."""
    alpha, sigma = PAPERS[type(sde).__name__]

    def rate(scale: Scale, t: Number) -> Number:
        # By a central difference whose error, h^2 = 1e-34, is far below double precision.
        h = mp.mpf(10) ** -17
        return (scale(t + h) - scale(t - h)) / (2 * h)

    def drift(t: Number) -> Number:
        return rate(lambda u: mp.log(alpha(u)), t)

    def diffusion(t: Number) -> Number:
        return mp.sqrt(rate(lambda u: sigma(u) ** 2, t) - 2 * sigma(t) ** 2 * drift(t))

    return {
        "alpha": alpha,
        "sigma": sigma,
        "alpha_rate": lambda t: rate(alpha, t),
        "sigma_rate": lambda t: rate(sigma, t),
        "drift_coefficient": drift,
        "diffusion": diffusion,
        "log_snr": lambda t: 2 * mp.log(alpha(t) / sigma(t)),
    }[quantity]


def _reference(of: Scale, ts: Tensor) -> tuple[Tensor, Tensor]:
    """Values at ts, and how far they move when t is rounded: |t f'(t)|, in units of eps."""
    values, moved = [], []
    for t in map(mp.mpf, ts.tolist()):
        h = mp.mpf(10) ** -12
        values.append(float(of(t)))
        moved.append(float(abs(t * (of(t + h) - of(t - h)) / (2 * h))))
    return torch.tensor(values, dtype=F64), torch.tensor(moved, dtype=F64)


both_precisions = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)


@both_precisions
@pytest.mark.parametrize("quantity", QUANTITIES)
@every_built_in
def test_coefficients_are_as_good_as_the_time_they_are_given(
    sde: GaussianSDE, quantity: str, dtype: torch.dtype
) -> None:
    """The error is at most 8 roundings of the value and 4 of t, also at the ends in float32."""
    t = some_times(sde, dtype)
    value = getattr(sde, quantity)(t)
    assert value.dtype == dtype
    assert value.shape == t.shape
    wanted, moved = _reference(paper(sde, quantity), t)
    allowed = torch.finfo(dtype).eps * (8 * wanted.abs() + 4 * moved)
    assert ((value.to(F64) - wanted).abs() <= allowed).all()


@both_precisions
@every_built_in
def test_log_snr_is_that_of_the_paper(sde: GaussianSDE, dtype: torch.dtype) -> None:
    t = some_times(sde, dtype)
    wanted, moved = _reference(paper(sde, "log_snr"), t)
    allowed = torch.finfo(dtype).eps * (8 * (1 + wanted.abs()) + 4 * moved)
    assert ((sde.log_snr(t).to(F64) - wanted).abs() <= allowed).all()


@every_sde
def test_log_snr_falls(sde: GaussianSDE) -> None:
    t = torch.linspace(sde.t_min, sde.t_max, 1001, dtype=F64)
    assert (sde.log_snr(t).diff() < 0).all()


@both_precisions
@every_sde
def test_t_from_log_snr_is_the_inverse(sde: GaussianSDE, dtype: torch.dtype) -> None:
    """Relative in t, as far as a log-SNR that is rounded once can say."""
    t = some_times(sde, dtype)
    log_snr = sde.log_snr(t)
    slope = (sde.diffusion(t) / sde.sigma(t)).square()  # -d log_snr / dt
    # VE keeps a signal at t = 0, so that t there is known on the scale of the span only.
    allowed = torch.finfo(dtype).eps * (16 * t + 16 * (1 + log_snr.abs()) / slope)
    back = sde.t_from_log_snr(log_snr)
    assert back.dtype == dtype
    assert ((back - t).abs() <= allowed).all()
    if sde.t_min > 0:
        assert ((back - t).abs() <= (1e-12 if dtype == F64 else 2e-4) * t).all()


@pytest.mark.parametrize("sde", BUILT_IN, ids=name_of)
def test_the_base_class_derives_what_the_closed_forms_say(sde: GaussianSDE) -> None:
    derived, t = OnlyScales(sde), some_times(sde)
    for quantity in (*QUANTITIES, "log_snr"):
        torch.testing.assert_close(
            getattr(derived, quantity)(t), getattr(sde, quantity)(t), rtol=1e-9, atol=1e-12
        )
    log_snr = sde.log_snr(t)
    torch.testing.assert_close(derived.t_from_log_snr(log_snr), t, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_derived_rates_do_not_need_gradients_switched_on(mode: Callable[[], Any]) -> None:
    derived = OnlyScales(CosineSDE())
    t = some_times(derived)
    wanted = CosineSDE().drift_coefficient(t), CosineSDE().diffusion(t)
    with mode():
        for time in (t, t.clone()):
            got = derived.drift_coefficient(time), derived.diffusion(time)
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class Learned(GaussianSDE):
    """A schedule with a parameter: alpha = exp(-w t), sigma = t^w."""

    def __init__(self) -> None:
        super().__init__(t_min=1e-3, t_max=1.0)
        self.w = nn.Parameter(torch.tensor(0.7, dtype=F64))

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(-self.w * torch.as_tensor(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return torch.as_tensor(t) ** self.w


def test_derived_coefficients_are_differentiable_in_a_learned_schedule() -> None:
    """By hand: a = -w, and g^2 = 2 w t^(2 w) (1 / t + 1)."""
    sde, t = Learned(), torch.tensor([0.2, 0.9], dtype=F64)
    w = sde.w.detach().clone().requires_grad_()
    squared = 2 * w * t ** (2 * w) * (1 / t + 1)
    for got, wanted in ((sde.drift_coefficient(t), -w.expand(2)), (sde.diffusion(t) ** 2, squared)):
        torch.testing.assert_close(got, wanted)
        (one,) = torch.autograd.grad((got * t).sum(), sde.w)
        (other,) = torch.autograd.grad((wanted * t).sum(), w)
        torch.testing.assert_close(one, other)


def test_bisection_ends_at_the_ends_of_the_span() -> None:
    sde = OnlyScales(VPSDE())
    ends = sde.t_from_log_snr(torch.tensor([100.0, -100.0], dtype=F64))
    assert ends.tolist() == pytest.approx([sde.t_min, sde.t_max], rel=1e-12)


def _any_sde() -> st.SearchStrategy[GaussianSDE]:
    def ordered(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
        return st.tuples(st.floats(low, high), st.floats(1.1, 50)).map(
            lambda p: (p[0], p[0] * p[1])
        )

    betas = ordered(0.01, 2.0)
    return st.one_of(
        betas.map(lambda p: VPSDE(*p)),
        betas.map(lambda p: SubVPSDE(*p)),
        st.floats(0.1, 5.0).map(lambda b: VPSDE(b, b)),
        ordered(1e-3, 10.0).map(lambda p: VESDE(*p)),
        st.floats(1e-4, 0.1).map(lambda t: CosineSDE(t_min=t)),
        st.floats(1e-4, 0.1).map(lambda t: FlowMatchingSDE(t_min=t)),
    )


@settings(deadline=None, derandomize=True, max_examples=200)
@given(sde=_any_sde(), fraction=st.floats(0.002, 1))
def test_identities_hold_by_central_differences(sde: GaussianSDE, fraction: float) -> None:
    """For any parameters. Fourth order at h = 0.002 of the distance to a singular end."""
    t = sde.t_min + fraction * (sde.t_max - sde.t_min)
    singular = t if t >= 1 else min(t, 1 - t) if sde.t_max < 1 else t
    h = 0.002 * singular

    def rate(of: Callable[[Tensor], Tensor]) -> Tensor:
        points = torch.tensor([t - 2 * h, t - h, t + h, t + 2 * h], dtype=F64)
        return of(points) @ torch.tensor([1, -8, 8, -1], dtype=F64) / (12 * h)

    time = torch.tensor(t, dtype=F64)
    drift = rate(lambda u: sde.alpha(u).log())
    noise = rate(lambda u: sde.sigma(u).square()) - 2 * sde.sigma(time).square() * drift
    torch.testing.assert_close(sde.drift_coefficient(time), drift, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sde.diffusion(time).square(), noise, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sde.alpha_rate(time), rate(sde.alpha), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sde.sigma_rate(time), rate(sde.sigma), rtol=1e-6, atol=1e-8)
    slope = -sde.diffusion(time).square() / sde.sigma(time).square()
    torch.testing.assert_close(rate(sde.log_snr), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sde.t_from_log_snr(sde.log_snr(time)), time, rtol=1e-10, atol=1e-13)


def test_betas_and_sigmas_stand_where_the_papers_put_them() -> None:
    sde = VPSDE(0.1, 20.0)
    assert sde.beta(0.0).item() == pytest.approx(0.1)
    assert sde.beta(1.0).item() == pytest.approx(20.0)
    assert sde.integrated_beta(1.0).item() == pytest.approx(10.05)
    assert VESDE(0.01, 50.0).sigma(0.0).item() == pytest.approx(0.01)
    assert VESDE(0.01, 50.0).sigma(0.5).item() == pytest.approx((0.01 * 50.0) ** 0.5)


@every_sde
def test_coefficients_are_differentiable_in_time(sde: GaussianSDE) -> None:
    t = torch.tensor([0.3, 0.6], dtype=F64)
    for name in ("alpha", "sigma", "drift_coefficient", "diffusion", "log_snr"):
        assert torch.autograd.gradcheck(getattr(sde, name), t.clone().requires_grad_())
