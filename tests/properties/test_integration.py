"""torchdiffeq and torchsde integrate the systems as they stand, and reach the closed forms.

False-alarm rate of each statistical test: 1e-6, over seeds; the seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchsde
from support.closed_forms import (
    F64,
    assert_distribution,
    assert_moments,
    euler_moments,
    every_sde,
    exact_flow,
    some_times,
    spread,
)
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.score_model import ScoreModel
from sde_models.models.systems import ProbabilityFlow, ReverseSDE
from sde_models.sdes import VESDE, VPSDE
from sde_models.sdes.gaussian import GaussianSDE

MEAN = torch.tensor([1.5, -0.5, 0.2, 0.0], dtype=F64)
STD = torch.tensor([0.3, 0.8, 0.5, 1.2], dtype=F64)
every_shape = pytest.mark.parametrize("event_shape", [(4,), (1, 2, 2)], ids=str)


def one_gaussian(sde: GaussianSDE, event_shape: tuple[int, ...]) -> ProbabilityFlow:
    """The flow of N(MEAN, diag(STD^2))."""
    return ProbabilityFlow(GaussianMixture(MEAN[None], STD[None]).score_model(sde, event_shape))


@pytest.mark.parametrize("backward", [False, True], ids=["encode", "decode"])
@every_shape
@every_sde
def test_odeint_follows_the_closed_form(
    sde: GaussianSDE, event_shape: tuple[int, ...], backward: bool
) -> None:
    """From either end, at every time on the way, to 1e-6 of the spread at that time."""
    flow, ts = one_gaussian(sde, event_shape), some_times(sde)
    ts = ts.flip(0) if backward else ts
    mean, std = MEAN.reshape(event_shape), STD.reshape(event_shape)
    x = sde.alpha(ts[0]) * mean + spread(sde, ts[0], std) * torch.randn(5, *event_shape, dtype=F64)
    path = odeint(flow, x, ts, rtol=1e-9, atol=1e-9)
    for t, got in zip(ts, path, strict=True):
        wanted, _ = exact_flow(sde, mean, std, float(ts[0]), float(t), x)
        assert ((got - wanted).abs() <= 1e-6 * (spread(sde, t, std) + wanted.abs())).all()


@every_sde
def test_the_exact_flow_has_the_log_determinant_of_its_jacobian(sde: GaussianSDE) -> None:
    """The helper against autograd, and its inverse."""
    mean, std, x = MEAN.reshape(1, 2, 2), STD.reshape(1, 2, 2), torch.randn(3, 1, 2, 2, dtype=F64)
    t0, t1 = sde.t_min, 0.6 * sde.t_max
    moved, log_det = exact_flow(sde, mean, std, t0, t1, x)
    jacobian = torch.func.jacrev(
        lambda row: exact_flow(sde, mean, std, t0, t1, row.reshape(1, 1, 2, 2))[0].flatten()
    )(x[0].flatten())
    torch.testing.assert_close(log_det, jacobian.det().abs().log())
    back, minus = exact_flow(sde, mean, std, t1, t0, moved)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(minus, -log_det)


@every_sde
def test_in_single_precision_the_flow_returns(sde: GaussianSDE) -> None:
    """There and back in float32, within 1e-3 of the spread of the data."""
    flow = one_gaussian(sde, (4,))
    flow.float()
    x = (MEAN + STD * torch.randn(5, 4, dtype=F64)).float()
    ts = torch.tensor([sde.t_min, sde.t_max])
    z = odeint(flow, x, ts, rtol=1e-6, atol=1e-6)[-1]
    assert z.dtype == torch.float32
    wanted, _ = exact_flow(sde, MEAN, STD, sde.t_min, sde.t_max, x.double())
    assert ((z - wanted).abs() <= 1e-3 * spread(sde, torch.tensor(sde.t_max), STD)).all()
    back = odeint(flow, z, ts.flip(0), rtol=1e-6, atol=1e-6)[-1]
    assert ((back - x).abs() <= 1e-3 * STD).all()


class Small(nn.Module):
    """A smooth network with two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6, dtype=F64), nn.Linear(6, 4, dtype=F64)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        hidden = self.first(torch.cat([x.flatten(1), t[:, None]], dim=1)).tanh()
        return self.second(hidden).reshape(x.shape)


@pytest.mark.parametrize("prediction", ["eps", "edm"])
@every_shape
def test_odeint_adjoint_has_the_gradients_of_autograd(
    event_shape: tuple[int, ...], prediction: str
) -> None:
    """With respect to the start, the times and every parameter."""
    kind = {"preconditioning": "edm"} if prediction == "edm" else {"prediction": prediction}
    flow = ProbabilityFlow(ScoreModel(Small(), VPSDE(t_min=1e-2), **kind))
    start = torch.randn(3, *event_shape, dtype=F64)
    gradients = []
    for integrate in (odeint, odeint_adjoint):
        x = start.clone().requires_grad_()
        ts = torch.tensor([0.8, 0.4, 0.1], dtype=F64, requires_grad=True)
        path = integrate(flow, x, ts, rtol=1e-9, atol=1e-9)
        loss = (path[1] * path[2].sin()).sum()
        gradients.append(torch.autograd.grad(loss, (x, ts, *flow.parameters())))
    assert len(gradients[0]) == 6
    for direct, adjoint in zip(*gradients, strict=True):
        assert direct.abs().max() > 1e-3
        torch.testing.assert_close(adjoint, direct, rtol=1e-6, atol=1e-6)


def test_odeint_adjoint_takes_a_model_without_parameters() -> None:
    """The gradient of the exact flow is the ratio of spreads."""
    sde = VPSDE()
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    ts = torch.tensor([sde.t_min, 0.5], dtype=F64)
    odeint_adjoint(one_gaussian(sde, (4,)), x, ts, rtol=1e-8, atol=1e-8)[-1].sum().backward()
    stretch = spread(sde, ts[1], STD) / spread(sde, ts[0], STD)
    torch.testing.assert_close(x.grad, stretch.expand(3, 4), rtol=1e-6, atol=1e-6)


@every_sde
def test_sdeint_has_the_marginals_of_the_diffused_gaussian(sde: GaussianSDE) -> None:
    """At three times and the end, for images; the bias of Euler's method is known exactly.

    One test at each of four times: 2.5e-7 each makes the 1e-6.
    """
    rev = ReverseSDE(one_gaussian(sde, (1, 2, 2)).model, (1, 2, 2))
    steps = 400
    dt = (sde.t_max - sde.t_min) / steps
    grid = -sde.t_max + dt * torch.arange(steps + 1, dtype=F64)
    stops = [0, 100, 250, 380, steps]
    t = -grid[stops, None]
    mean, variance = sde.alpha(t) * MEAN, spread(sde, t, STD).square()
    y = mean[0] + variance[0].sqrt() * torch.randn(4000, 4, dtype=F64)
    bm = torchsde.BrownianInterval(grid[0], grid[-1], size=y.shape, dtype=F64, entropy=1, dt=dt)
    path = torchsde.sdeint(rev, y, grid[stops], bm=bm, dt=dt, method="euler")
    means, variances = euler_moments(rev.f, rev.g, mean[0], variance[0], grid)
    for i, k in enumerate(stops[1:], start=1):
        mean_bias, bias = (means[k] - mean[i]).abs(), (variances[k] - variance[i]).abs()
        assert (mean_bias < 0.05 * variance[i].sqrt()).all()  # the allowance is no blank cheque
        assert (bias < 0.1 * variance[i]).all()
        assert_moments(
            path[i],
            mean[i],
            variance[i],
            false_alarm=2.5e-7,
            mean_bias=mean_bias,
            covariance_bias=bias,
        )


MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.4], [0.8, -0.2]], dtype=F64),
    torch.tensor([[0.2, 0.4], [0.3, 0.2]], dtype=F64),
    torch.tensor([0.3, 0.7], dtype=F64),
)
DIRECTIONS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, -0.6]], dtype=F64)


def _cdf(law: GaussianMixture, direction: Tensor) -> Callable[[Tensor], Tensor]:
    centres, scales = law.means @ direction, (law.variances @ direction.square()).sqrt()
    weights = law.log_weights.exp()
    return lambda v: torch.special.ndtr((v[:, None] - centres) / scales) @ weights


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 5.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("how", ["flow", "reverse-heun", "half-heun"])
def test_marginals_of_the_diffused_mixture(sde: GaussianSDE, how: str) -> None:
    """Along three directions at three times: nine tests of 1e-7 each.

    The flow is solved to 1e-6. Heun's method at this step had distances of at most 0.003 with
    200,000 samples, where exact samples have 0.002: 0.005 is allowed for its bias.
    """
    ts = torch.tensor([sde.t_max, 0.6, 0.3, sde.t_min], dtype=F64)
    x = MIXTURE.diffuse(sde, sde.t_max).sample(10_000)
    model = MIXTURE.score_model(sde)
    if how == "flow":
        path, bias = odeint(ProbabilityFlow(model), x, ts, rtol=1e-6, atol=1e-6), 1e-4
    else:
        eta = 1.0 if how == "reverse-heun" else 0.5
        rev = ReverseSDE(model, (2,), eta, sde_type="stratonovich")
        bm = torchsde.BrownianInterval(-ts[0], -ts[-1], size=x.shape, dtype=F64, entropy=2, dt=5e-3)
        path, bias = torchsde.sdeint(rev, x, -ts, bm=bm, dt=5e-3, method="heun"), 5e-3
    for t, got in zip(ts[1:], path[1:], strict=True):
        law = MIXTURE.diffuse(sde, t)
        for direction in DIRECTIONS:
            assert_distribution(got @ direction, _cdf(law, direction), false_alarm=1e-7, bias=bias)
