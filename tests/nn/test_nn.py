"""ResidualNetwork: what score models and divergence estimators ask of a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_models.models.score_model import ScoreModel
from sde_models.nn import FourierFeatures, MixingNetwork, ResidualNetwork, UNet
from sde_models.sampling.latents import encode
from sde_models.sdes import VPSDE


def awakened(network: ResidualNetwork, seed: int = 0) -> ResidualNetwork:
    """Give the layers that start at zero some weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.3, generator=generator)
    return network


@pytest.fixture
def network() -> ResidualNetwork:
    torch.manual_seed(0)
    return awakened(ResidualNetwork((2, 2), width=16, depth=2).double())


@pytest.mark.parametrize("event_shape", [(2,), (1, 4, 4), (3, 2, 1, 2)])
def test_output_starts_at_zero_in_the_shape_of_x(event_shape: tuple[int, ...]) -> None:
    network = ResidualNetwork(event_shape, width=8, depth=1)
    x = torch.randn(5, *event_shape)
    assert torch.equal(network(torch.rand(5), x), torch.zeros_like(x))


def test_samples_do_not_see_each_other(network: ResidualNetwork) -> None:
    t, x = torch.rand(4, dtype=torch.float64), torch.randn(4, 2, 2, dtype=torch.float64)
    alone = torch.cat([network(t[i : i + 1], x[i : i + 1]) for i in range(4)])
    assert torch.allclose(network(t, x), alone, rtol=1e-12, atol=1e-14)


def test_time_derivative_matches_finite_differences(network: ResidualNetwork) -> None:
    t = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    x, probe = torch.randn(2, 9, 2, 2, dtype=torch.float64)

    def project(t: Tensor) -> Tensor:
        return (probe * network(t, x)).flatten(1).sum(dim=1)

    (rate,) = torch.autograd.grad(project(t).sum(), t)
    h = 1e-6
    differences = (project(t + h) - project(t - h)) / (2 * h)
    assert torch.allclose(rate, differences, rtol=1e-6, atol=1e-8)
    assert bool((rate != 0).all())


def test_twice_differentiable(network: ResidualNetwork) -> None:
    t = torch.rand(2, dtype=torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = network.read.weight
    assert torch.autograd.gradgradcheck(lambda x, w: _call(network, t, x, w), (x, weight))


def _call(network: ResidualNetwork, t: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(network, {"read.weight": weight}, (t, x))


def test_batched_vector_jacobian_products_match_single_ones(network: ResidualNetwork) -> None:
    t = torch.rand(3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = network(t, x)
    probes = torch.randn(5, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, probes, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, x, probe, retain_graph=True)[0] for probe in probes]
    assert torch.allclose(batched, torch.stack(single), rtol=1e-12, atol=1e-14)


def test_label_is_a_conditioning_keyword_of_the_model() -> None:
    torch.manual_seed(0)
    network = awakened(ResidualNetwork((2,), width=16, depth=1, classes=3))
    model = ScoreModel(network, VPSDE())
    x = torch.ones(4, 2)
    eps = model.eps(0.5, x, label=torch.tensor([0, 1, 3, 3]))
    assert not torch.allclose(eps[0], eps[1])
    assert not torch.allclose(eps[1], eps[2])
    assert torch.equal(eps[2], eps[3])
    assert torch.allclose(model.eps(0.5, x, label=2), model.eps(0.5, x, label=torch.full((4,), 2)))
    assert torch.equal(model.eps(0.5, x), model.eps(0.5, x, label=3)), "no label is label `classes`"


@pytest.mark.parametrize("label", [torch.tensor([0, 4]), torch.tensor([-1, 0]), 4])
def test_unknown_labels_are_refused(label: Tensor | int) -> None:
    network = ResidualNetwork((2,), width=8, depth=1, classes=3)
    with pytest.raises(ValueError, match="from 0 to 3"):
        network(torch.rand(2), torch.zeros(2, 2), label=label)


def test_label_of_a_network_without_classes_is_refused() -> None:
    network = ResidualNetwork((2,), width=8, depth=1)
    with pytest.raises(TypeError, match="classes="):
        network(torch.rand(2), torch.zeros(2, 2), label=torch.tensor([0, 1]))


SAME_LABELS: dict[str, tuple[Any, Any]] = {
    "one row": (torch.tensor([1]), 1), "list of one": ([1], 1), "array of one": (np.array([1]), 1),
    **{
        str(kind): (torch.arange(3).to(kind), [0, 1, 2])
        for kind in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint64)
    },
    "array of bytes": (np.arange(3, dtype=np.uint8), [0, 1, 2]),
    "one byte": (torch.tensor(2, dtype=torch.uint8), 2), "NumPy number": (np.uint8(2), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_LABELS)
@pytest.mark.parametrize("network", ["residual", "mixing", "unet"])
def test_labels_may_be_shared_and_of_any_integers(network: str, name: str) -> None:
    """As the same labels for each sample in 64 bits, also where a batch is cut into parts."""
    given, same = SAME_LABELS[name]
    shape = (1, 4, 4)
    made: torch.nn.Module = {
        "residual": lambda: ResidualNetwork(shape, width=8, depth=1, classes=3),
        "mixing": lambda: MixingNetwork(shape, width=8, depth=1, classes=3),
        "unet": lambda: UNet(shape, "ddpm++", channels=32, multipliers=(1,), blocks=1, classes=3),
    }[network]()
    for weights in made.parameters():
        torch.nn.init.normal_(weights, std=0.2, generator=torch.Generator().manual_seed(0))
    model, x = ScoreModel(made, VPSDE()), torch.linspace(-1, 1, 48).reshape(3, *shape)
    full = torch.as_tensor(same).expand(3)
    wanted = encode(model, x, "ode:euler", steps=2, cond={"label": full}).z
    found = encode(model, x, "ode:euler", steps=2, cond={"label": given}).z
    assert torch.equal(found, wanted)
    other = encode(model, x, "ode:euler", steps=2, cond={"label": 3}).z
    assert not torch.equal(found, other)


WRONG_LABELS = [
    torch.tensor([0.0, 1.0]), torch.tensor([0, 1, 2]), torch.tensor([[0], [1]]),
    torch.tensor([True, False]), torch.tensor([0j, 1j]), "1", ["a", "b"], {"one": 1}, 1.0, 2**70,
]  # fmt: skip


@pytest.mark.parametrize("label", WRONG_LABELS)
def test_labels_of_the_wrong_kind_are_refused(label: Any) -> None:
    network = ResidualNetwork((2,), width=8, depth=1, classes=3)
    with pytest.raises((TypeError, ValueError), match=r"label .*\(2,\)"):
        network(torch.rand(2), torch.zeros(2, 2), label=label)


def test_wrong_event_shape_is_refused() -> None:
    network = ResidualNetwork((2,), width=8, depth=1)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2,\)"):
        network(torch.rand(2), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "arguments", [{"width": 0}, {"depth": 0}, {"classes": 0}, {"frequencies": 1}]
)
def test_sizes_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ResidualNetwork((2,), **arguments)


@pytest.mark.parametrize("event_shape", [(), (0,), (2, -1)])
def test_empty_events_are_refused(event_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="event_shape"):
        ResidualNetwork(event_shape)


def test_fourier_features_are_the_documented_waves() -> None:
    features = FourierFeatures(3, lowest=1.0, highest=100.0)(torch.tensor([0.0, 0.7]))
    for k, omega in enumerate((1.0, 10.0, 100.0)):
        expected = torch.tensor([math.sin(0.7 * omega), math.cos(0.7 * omega)]) / omega**0.5
        assert torch.allclose(features[1, 2 * k : 2 * k + 2], expected, atol=1e-5)
        assert torch.equal(features[0, 2 * k : 2 * k + 2], torch.tensor([0.0, omega**-0.5]))
