"""MixingNetwork: what score models, trace estimators and model files ask of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sde_models as sm


def awakened(network: sm.nn.MixingNetwork) -> sm.nn.MixingNetwork:
    """Give the layers that start at zero some weight, as training would."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.3, generator=generator)
    return network


@pytest.fixture
def network() -> sm.nn.MixingNetwork:
    torch.manual_seed(0)
    return awakened(sm.nn.MixingNetwork((2, 3, 4), width=6, depth=2).double())


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 4, 6)])
@pytest.mark.parametrize("width", [1, 6, 16])
def test_output_starts_at_zero_in_the_shape_of_x(event_shape: tuple[int, ...], width: int) -> None:
    network = sm.nn.MixingNetwork(event_shape, width=width, depth=1)
    x = torch.randn(5, *event_shape)
    assert torch.equal(network(torch.rand(5), x), torch.zeros_like(x))


def test_samples_do_not_see_each_other_and_pixels_do(network: sm.nn.MixingNetwork) -> None:
    t = torch.rand(4, dtype=torch.float64)
    x = torch.randn(4, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    alone = torch.cat([network(t[i : i + 1], x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(t, x), alone, rtol=1e-12, atol=1e-13)
    (seen,) = torch.autograd.grad(network(t, x)[0, 0, 0, 0], x)
    assert bool((seen[0] != 0).all())
    assert not seen[1:].any()


def test_gradient_of_a_trace_is_that_of_finite_differences(network: sm.nn.MixingNetwork) -> None:
    t = torch.tensor([0.3], dtype=torch.float64)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def trace(x: Tensor) -> Tensor:
        return sm.Exact()(lambda y: network(t, y), x, None)[1].value.sum()

    (gradient,) = torch.autograd.grad(trace(x), x)
    direction = torch.randn_like(x)
    ends = [trace((x + sign * 1e-5 * direction).detach()).detach() for sign in (-1, 1)]
    slope = (ends[1] - ends[0]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_labels_and_model_files(tmp_path: Path) -> None:
    network = awakened(sm.nn.MixingNetwork((1, 4, 4), width=8, depth=1, classes=3))
    model = sm.ScoreModel(network, sm.VPSDE(), preconditioning="edm", event_shape=(1, 4, 4))
    sm.save_model(tmp_path / "model.safetensors", model.eval())
    again = sm.load_model(tmp_path / "model.safetensors")
    x, label = torch.randn(3, 1, 4, 4), torch.arange(3)
    assert torch.equal(again.eps(0.5, x, label=label), model.eps(0.5, x, label=label))
    assert not torch.equal(model.eps(0.5, x, label=label), model.eps(0.5, x))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(channels, height, width\), got \(4,\).*ResidualNet"):
        sm.nn.MixingNetwork((4,))
    with pytest.raises(ValueError, match="depth must be an integer of 1 or more, got 0"):
        sm.nn.MixingNetwork((1, 4, 4), depth=0)
    with pytest.raises(ValueError, match=r"events of shape \(1, 4, 4\)"):
        sm.nn.MixingNetwork((1, 4, 4))(torch.rand(2), torch.zeros(2, 1, 4, 5))
    with pytest.raises(TypeError, match="without classes"):
        sm.nn.MixingNetwork((1, 4, 4))(torch.rand(2), torch.zeros(2, 1, 4, 4), label=1)
