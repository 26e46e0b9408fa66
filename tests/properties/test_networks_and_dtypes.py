"""Compiled networks, networks in half precision, and devices without double precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.narrow_device import DEVICE, Narrow, NarrowDevice, narrow, wide
from torch import Tensor, nn

import sde_models as sm

TABLE = sm.list_solvers()
NATIVE = [name for name, solver in TABLE.items() if solver.library == "sde_models"]
SDE = sm.VPSDE(t_min=1e-3)
STEPS = 6
every_native = pytest.mark.parametrize("name", NATIVE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return sm.nn.ResidualNetwork((4,), width=16, depth=1).eval()


def draw(model: sm.Model, name: str, **arguments: Any) -> Tensor:
    """Samples of a model, in a few steps."""
    solver = TABLE[name]
    arguments |= {"rtol": 0.05, "atol": 0.05} if solver.adaptive else {"steps": STEPS}
    return sm.sample(model, (5, 4), name, generator=generator(), **arguments).x


@pytest.fixture(scope="module", params=["eager", "aot_eager"])
def compiled(request: pytest.FixtureRequest) -> Iterator[sm.Model]:
    """A compiled network, not by inductor, which takes half a minute."""
    torch._dynamo.reset()
    yield sm.ScoreModel(torch.compile(make_network(), backend=request.param), SDE)
    torch._dynamo.reset()


@every_native
def test_a_compiled_network_gives_the_same_samples(name: str, compiled: sm.Model) -> None:
    """Also where samples leave the batch or several times are evaluated at once."""
    plain = sm.ScoreModel(make_network(), SDE)
    torch.testing.assert_close(draw(compiled, name), draw(plain, name), rtol=1e-4, atol=1e-4)


class Half(nn.Module):
    """A network in half precision that insists on inputs in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_network().bfloat16()
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        assert t.dtype == x.dtype == torch.bfloat16
        self.calls += 1
        return self.inner(t, x)


class Rounded(nn.Module):
    """The same network in single precision, with inputs, weights and output rounded like its."""

    def __init__(self, half: Half) -> None:
        super().__init__()
        self.half = [half]  # hidden, so that this network has no dtype of its own

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.half[0](t.bfloat16(), x.bfloat16()).float()


@every_native
@pytest.mark.parametrize("kind", [{}, {"prediction": "x0"}, {"preconditioning": "edm"}], ids=str)
def test_a_network_in_half_precision_has_a_state_in_single(name: str, kind: dict[str, Any]) -> None:
    """The state is never rounded: the samples are those of a network that rounds for itself."""
    half = Half()
    got = draw(sm.ScoreModel(half, SDE, **kind), name)
    assert half.calls > 0
    assert got.dtype == torch.float32
    wanted = draw(sm.ScoreModel(Rounded(half), SDE, **kind), name)
    assert torch.equal(got, wanted)


def test_a_network_may_change_its_dtype_between_solves() -> None:
    network, x = make_network(), torch.randn(5, 4, generator=generator())
    flow = sm.ProbabilityFlow(sm.ScoreModel(network, SDE))
    single = sm.solve(flow, x, (1.0, 0.1), "ddim", steps=STEPS).x
    network.double()
    double = sm.solve(flow, x.double(), (1.0, 0.1), "ddim", steps=STEPS).x
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    network.bfloat16()
    half = sm.solve(flow, x, (1.0, 0.1), "ddim", steps=STEPS).x
    torch.testing.assert_close(single, half, rtol=0, atol=0.1)


class Clipped(sm.ScoreModel):
    """A model that has its own say in the estimates."""

    def denoise(self, t: Tensor, x: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        x0, _ = super().denoise(t, x, **cond)
        x0 = x0.clamp(-0.1, 0.1)
        sde: Any = self.sde
        return x0, (x - sde.alpha(t) * x0) / sde.sigma(t)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "euler-maruyama", "ode:rk4", "sde:euler"])
def test_a_subclass_that_denoises_otherwise_is_heard(name: str) -> None:
    """An estimate within 0.1 leaves samples there but for the noise at t_min, 0.01."""
    samples = draw(Clipped(make_network(), SDE), name)
    bound = 0.1 + 6 * float(SDE.sigma(torch.tensor(SDE.t_min)))
    if TABLE[name].diffusion_only:  # the others have errors of their own in so few steps
        assert float(samples.abs().max()) < bound
    plain = draw(sm.ScoreModel(make_network(), SDE), name)
    assert float((samples - plain).abs().max()) > 0.05


class Smooth(nn.Module):
    """An estimate of x0 with weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return (self.linear(x) + t[:, None]).tanh()


class Learned(sm.GaussianSDE):
    """Variance-preserving, with a rate that is a parameter."""

    def __init__(self) -> None:
        super().__init__(t_min=0.01, t_max=1.0)
        self.rate = nn.Parameter(torch.tensor(3.0))

    def alpha(self, t: Any) -> Tensor:
        return torch.exp(-self.rate * torch.as_tensor(t))

    def sigma(self, t: Any) -> Tensor:
        return torch.sqrt(-torch.expm1(-2 * self.rate * torch.as_tensor(t)))


def put(module: nn.Module) -> None:
    """Move the parameters to the device without double precision."""
    for part in module.modules():
        for key, value in part._parameters.items():
            if value is not None:
                part._parameters[key] = nn.Parameter(narrow(value.detach()))


KINDS: dict[str, Any] = {
    "edm": lambda: sm.ScoreModel(Smooth(), SDE, preconditioning="edm"),
    "learned": lambda: sm.ScoreModel(Smooth(), Learned(), "x0"),
}


LOSSES: dict[str, Any] = {
    "denoising": partial(sm.losses.denoising_score_matching, weighting="edm"),
    "learned times": lambda *a, **k: sm.losses.denoising_score_matching(
        *a, weighting="likelihood", times=sm.losses.LearnedTimes(), **k
    ),
    "levels": partial(
        sm.losses.denoising_score_matching, times=sm.losses.level_times([0.3, 0.5, 1.0])
    ),
    "one level": partial(sm.losses.denoising_score_matching, weighting="min-snr", sigma=0.5),
    "implicit": sm.losses.implicit_score_matching,
    "sliced": sm.losses.sliced_score_matching,
    "finite differences": sm.losses.finite_difference_sliced,
    "simulated": partial(sm.losses.simulated_score_matching, steps=4),
    "penalty": sm.losses.fokker_planck_penalty,
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_runs_where_there_is_no_double_precision(name: str, kind: str) -> None:
    there, here = KINDS[kind](), KINDS[kind]()
    with NarrowDevice():
        put(there)
        if TABLE[name].library == "torchdiffeq" and TABLE[name].equal_steps:
            with pytest.raises(ValueError, match="float64, which this device lacks"):
                draw(there, name)
            return
        got = draw(there, name)
    assert got.device == DEVICE
    assert got.dtype == torch.float32
    adaptive = TABLE[name].adaptive
    tolerance = 0.2 if adaptive else 1e-3  # rounding may decide whether a step is taken
    torch.testing.assert_close(wide(got), draw(here, name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_runs_where_there_is_no_double_precision(name: str, kind: str) -> None:
    there, here = KINDS[kind](), KINDS[kind]()
    x0 = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))

    def loss(model: sm.ScoreModel, data: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return LOSSES[name](model, data, generator=generator).detach()

    with NarrowDevice():
        put(there)
        got = loss(there, narrow(x0))
    assert got.device == DEVICE
    assert got.dtype == torch.float32
    torch.testing.assert_close(wide(got), loss(here, x0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("divergence", ["hutchinson", "xtrace"])
def test_probes_of_a_generator_are_the_same_on_every_device(divergence: str) -> None:
    """They are drawn where the generator is: the device has no generators here."""
    there, here = KINDS["edm"](), KINDS["edm"]()
    x = torch.randn(5, 4, generator=generator(1))

    def density(model: sm.ScoreModel, data: Tensor) -> Tensor:
        return sm.log_prob(
            model, data, "dpmpp-2m", steps=8, intervals=12, divergence=divergence,
            generator=generator(2), estimate_solver_error=False,
        ).value  # fmt: skip

    with NarrowDevice():
        put(there)
        got = density(there, narrow(x))
    assert got.device == DEVICE
    torch.testing.assert_close(wide(got), density(here, x), rtol=1e-3, atol=1e-3)


def test_the_device_without_double_precision_refuses_it() -> None:
    """What the test above would fall over."""
    x = narrow(torch.zeros(3))
    with NarrowDevice():
        assert x.device == DEVICE
        assert isinstance(x + torch.tensor(1.0, dtype=torch.float64), Narrow)
        assert x.to("cpu", torch.float64).dtype == torch.float64
        assert type(x.cpu()) is Tensor
        assert torch.zeros(2, dtype=torch.float64).to(x).dtype == torch.float32
        for work in (
            lambda: x.double(),
            lambda: x.to(torch.float64),
            lambda: torch.zeros(3, dtype=torch.float64).to(DEVICE),
            lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
            lambda: torch.tensor([math.pi], dtype=torch.float64, device=x.device),
        ):
            with pytest.raises(TypeError, match="no float64"):
                work()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.zeros(3)
