"""ScoreModel and EnergyModel give one and the same score, however the network is parametrised.

The networks here know the answer: the exact eps, x0, v, score, EDM residual or energy of a
Gaussian mixture, with its posterior written down by torch.distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.closed_forms import F64, Reference, every_sde, some_times
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sde_models.models.base import Model
from sde_models.models.energy_model import EnergyModel
from sde_models.models.score_model import ScoreModel
from sde_models.nn import MixingNetwork, ResidualNetwork, UNet
from sde_models.sdes import VPSDE
from sde_models.sdes.base import SDE
from sde_models.sdes.gaussian import GaussianSDE

PREDICTIONS = ["eps", "x0", "v", "score", "velocity", "edm"]
MIXTURE = Reference(
    torch.tensor([[-1.0, 0.5], [0.8, -0.3], [0.1, 1.2]], dtype=F64),
    torch.tensor([0.3, 0.5, 0.2], dtype=F64).square()[:, None, None] * torch.eye(2, dtype=F64),
    torch.tensor([0.5, 0.2, 0.3], dtype=F64),
)


class Oracle(nn.Module):
    """Returns what a perfect network would."""

    def __init__(self, sde: GaussianSDE, prediction: str) -> None:
        super().__init__()
        self.sde, self.prediction = sde, prediction

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        ones = (1,) * (x.ndim - 1)
        std = self.sde.data_std
        if self.prediction == "edm":  # the network is shown log(sigma / alpha) / 4 and x / S
            t = self.sde.t_from_log_snr(-8 * t).clamp(self.sde.t_min, self.sde.t_max)
            x = x * torch.hypot(self.sde.alpha(t) * std, self.sde.sigma(t)).reshape(-1, *ones)
        alpha, sigma = self.sde.alpha(t).reshape(-1, *ones), self.sde.sigma(t).reshape(-1, *ones)
        score = MIXTURE.score(self.sde, t, x)
        noise, x0 = MIXTURE.eps_and_x0(self.sde, t, x)
        total = torch.hypot(alpha * std, sigma)
        residual = (x0 - alpha * std**2 / total**2 * x) * total / (sigma * std)
        rates = self.sde.alpha_rate(t), self.sde.sigma_rate(t)
        of_x0, of_eps = (rate.reshape(-1, *ones) for rate in rates)
        return {
            "eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "score": score,
            "velocity": of_x0 * x0 + of_eps * noise, "edm": residual,
        }[self.prediction]  # fmt: skip


def oracle_model(sde: GaussianSDE, prediction: str) -> ScoreModel:
    """A ScoreModel around the oracle."""
    kind = {"preconditioning": "edm"} if prediction == "edm" else {"prediction": prediction}
    return ScoreModel(Oracle(sde, prediction), sde, **kind)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_sde
def test_every_prediction_gives_the_same_answers(
    sde: GaussianSDE, prediction: str, shape: tuple[int, ...]
) -> None:
    """In noise units: eps within 1e-8, and x0 and v with it."""
    t, x = MIXTURE.points(sde, shape)
    model = oracle_model(sde, prediction)
    ones = (1,) * len(shape)
    alpha, sigma = sde.alpha(t).reshape(-1, *ones), sde.sigma(t).reshape(-1, *ones)
    noise, x0 = MIXTURE.eps_and_x0(sde, t, x)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(model.eps(t, x), noise, **close)
    torch.testing.assert_close(model.x0(t, x), x0, **close)
    torch.testing.assert_close(model.v(t, x), alpha * noise - sigma * x0, **close)
    torch.testing.assert_close(sigma * model.score(t, x), -noise, **close)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_time_for_all_is_the_same_time_for_each(prediction: str) -> None:
    sde = VPSDE()
    model, x = oracle_model(sde, prediction), torch.randn(5, 2, dtype=F64)
    each = model.score(torch.full((5,), 0.3, dtype=F64), x)
    for t in (0.3, torch.tensor(0.3, dtype=F64)):
        torch.testing.assert_close(model.score(t, x), each, rtol=1e-12, atol=1e-12)


class Recorder(nn.Module):
    """Keeps what it was called with."""

    def forward(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        self.t, self.x, self.cond = t, x, cond
        return x


@pytest.mark.parametrize("method", ["score", "eps", "x0", "v"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conditioning_and_a_time_for_each_sample_arrive(prediction: str, method: str) -> None:
    network, label = Recorder(), torch.arange(3)
    kind = {"preconditioning": "edm"} if prediction == "edm" else {"prediction": prediction}
    model = ScoreModel(network, VPSDE(), **kind)
    x = torch.randn(3, 2, dtype=F64)
    getattr(model, method)(0.3, x, label=label, scale=2)
    assert network.t.shape == (3,)
    assert network.t.dtype == F64
    assert network.cond.keys() == {"label", "scale"}
    assert torch.equal(network.cond["label"], label)
    assert network.cond["label"] is not label  # the network may change what it is given
    assert network.cond["scale"] == 2
    if prediction != "edm":
        assert torch.equal(network.t, torch.full((3,), 0.3, dtype=F64))
        assert torch.equal(network.x, x)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_sde
def test_output_and_target_are_what_a_loss_compares(sde: GaussianSDE, prediction: str) -> None:
    """For a single datum the oracle's output is the target, at every time."""
    kind = {"preconditioning": "edm"} if prediction == "edm" else {"prediction": prediction}
    t, generator = some_times(sde), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(t), 2, dtype=F64, generator=generator)
    x = sde.perturb(t, x0, noise)

    class Target(nn.Module):
        def forward(self, clock: Tensor, shown: Tensor) -> Tensor:
            return model.target(t, x0, noise)

    model = ScoreModel(Target(), sde, **kind)
    assert torch.equal(model.output(t, x), model.target(t, x0, noise))
    scale = 1 / torch.minimum(sde.alpha(t), sde.sigma(t)).clamp(max=1)[:, None]
    assert ((model.x0(t, x) - x0).abs() <= 1e-12 * scale * (1 + sde.sigma(t)[:, None])).all()
    assert ((model.eps(t, x) - noise).abs() <= 1e-12 * scale).all()


class Misshapen(nn.Module):
    """Returns whatever it was made with."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.result = output

    def forward(self, t: Tensor, x: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(3, 1), r"\(3, 1\)"),
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(2), r"\(2,\)"),
    ],
)
def test_a_network_that_returns_another_shape_is_refused(output: Any, got: str) -> None:
    model = ScoreModel(Misshapen(output), VPSDE())
    with pytest.raises(ValueError, match=rf"returned {got} for x of shape \(3, 2\)"):
        model.score(0.5, torch.zeros(3, 2))


@pytest.mark.parametrize(("output", "got"), [((torch.zeros(3, 2),), "tuple"), (None, "NoneType")])
def test_a_network_that_returns_no_tensor_is_refused(output: Any, got: str) -> None:
    model = ScoreModel(Misshapen(output), VPSDE())
    with pytest.raises(TypeError, match=f"the network returned a {got}"):
        model.score(0.5, torch.zeros(3, 2))


def _energy_model(sde: SDE, **kwargs: Any) -> Model:
    return EnergyModel(Misshapen(None), sde, **kwargs)


def _score_model(sde: SDE, **kwargs: Any) -> Model:
    return ScoreModel(Misshapen(None), sde, **kwargs)


@pytest.mark.parametrize("make", [_score_model, _energy_model])
@pytest.mark.parametrize(
    ("t", "x", "error", "message"),
    [
        (0.5, torch.zeros(3, 2, dtype=torch.int64), TypeError, r"int64.*x\.float\(\)"),
        (0.5, torch.zeros(3, 3), ValueError, r"event shape \(3,\).*expects \(2,\)"),
        (0.5, torch.zeros(3, 1, 2), ValueError, r"event shape \(1, 2\)"),
        (0.5, torch.zeros(3), ValueError, r"expected \(B, \*event\)"),
        (1.5, torch.zeros(3, 2), ValueError, r"t=1.5 outside \[t_min, t_max\] = \[1e-05, 1\]"),
        (0.0, torch.zeros(3, 2), ValueError, "t=0 outside"),
        (float("nan"), torch.zeros(3, 2), ValueError, "nan.*outside"),
        (torch.zeros(2), torch.zeros(3, 2), ValueError, r"\(B,\) = \(3,\)"),
        (torch.full((3, 1), 0.5), torch.zeros(3, 2), ValueError, r"got shape \(3, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    make: Callable[..., Model], t: Any, x: Tensor, error: type[Exception], message: str
) -> None:
    model = make(VPSDE(), event_shape=(2,))
    for method in (model.score, model.eps, model.x0, model.v):
        with pytest.raises(error, match=message):
            method(t, x)


class Plain(SDE):
    """No kernel."""

    def f(self, t: Any, x: Tensor) -> Tensor:
        return -x

    def g(self, t: Any, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@pytest.mark.parametrize(
    "kind",
    [{}, {"prediction": "eps"}, {"prediction": "x0"}, {"preconditioning": "edm"}],
    ids=str,
)
def test_without_a_kernel_only_the_score_has_a_meaning(kind: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"Plain has no alpha and sigma.*'score'"):
        ScoreModel(Recorder(), Plain(), **kind)
    model, x = ScoreModel(Recorder(), Plain(), prediction="score"), torch.ones(3, 2)
    assert torch.equal(model.score(0.5, x), x)
    for method in (model.eps, model.x0, model.v):
        with pytest.raises(TypeError, match="Plain has no alpha and sigma"):
            method(0.5, x)
    with pytest.raises(TypeError, match="Plain has no alpha and sigma"):
        EnergyModel(Recorder(), Plain())


def test_unknown_predictions_are_refused_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="did you mean 'x0'"):
        ScoreModel(Recorder(), VPSDE(), prediction="x_0")


def test_dtype_and_device_are_those_of_the_network() -> None:
    assert ScoreModel(nn.Linear(1, 1, dtype=F64), VPSDE()).dtype == F64
    assert ScoreModel(Recorder(), VPSDE()).dtype == torch.get_default_dtype()
    assert ScoreModel(nn.Linear(1, 1), VPSDE()).device == torch.device("cpu")


class Shaped(Recorder):
    """A network that says which shape it takes."""

    event_shape: Any = (2,)


WRAPPED: list[Callable[[nn.Module], nn.Module]] = [
    lambda network: network,
    torch.compile,
    nn.DataParallel,
    AveragedModel,
    lambda network: torch.compile(nn.DataParallel(network)),
]


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", [ScoreModel, EnergyModel])
def test_the_event_shape_is_that_of_the_network(
    kind: Any, wrap: Callable[[nn.Module], Any]
) -> None:
    assert kind(wrap(Shaped()), VPSDE()).event_shape == (2,)
    assert kind(wrap(Recorder()), VPSDE()).event_shape is None
    assert kind(wrap(Shaped()), VPSDE(), event_shape=[2]).event_shape == (2,)
    with pytest.raises(ValueError, match=r"event_shape \(3,\) is not that of the network, \(2,\)"):
        kind(wrap(Shaped()), VPSDE(), event_shape=(3,))


@pytest.mark.parametrize("meaning", [(), 2, "2", ("B", 2), torch.ones(2), (True, 2)])
def test_an_attribute_of_another_meaning_is_no_event_shape(meaning: Any) -> None:
    network = Shaped()
    network.event_shape = meaning
    assert ScoreModel(network, VPSDE()).event_shape is None


def test_the_networks_of_this_library_give_their_shape() -> None:
    networks = (
        ResidualNetwork((3, 2), width=8, depth=1),
        MixingNetwork((1, 4, 4), width=8, depth=1),
        UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1),
    )
    shapes = [ScoreModel(network, VPSDE()).event_shape for network in networks]
    assert shapes == [(3, 2), (1, 4, 4), (1, 8, 8)]
