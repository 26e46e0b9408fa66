"""UNet: the published layouts, and what score models and traces ask of a network."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sde_models as sm
from sde_models.divergence.base import Products
from sde_models.nn import UNet

CHANNELS = {"ddpm++": 4, "ncsn++": 32}


def awakened(network: UNet, seed: int = 0) -> UNet:
    """Give the layers that start at zero some weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=generator)
    return network.eval()


def tiny(layout: str, image_shape: tuple[int, int, int] = (1, 4, 4), **settings: Any) -> UNet:
    """Two levels, the first with attention on the way down and up."""
    defaults: dict[str, Any] = {
        "channels": CHANNELS[layout],
        "multipliers": (1, 2),
        "blocks": 1,
        "attention_resolutions": [image_shape[1]],
    }
    return awakened(UNet(image_shape, layout, **{**defaults, **settings}))


@pytest.mark.parametrize(
    ("layout", "multipliers", "published"),
    [
        # Counted by the layers of the code that was published with the papers.
        ("ddpm++", (1, 2, 2, 2), 61_804_419),
        ("ddpm++", (2, 2, 2), 55_732_739),
        ("ncsn++", (1, 2, 2, 2), 62_758_787),
        ("ncsn++", (2, 2, 2), 56_395_523),
    ],
)
def test_layouts_have_the_published_size(
    layout: str, multipliers: tuple[int, ...], published: int
) -> None:
    with torch.device("meta"):
        network = UNet((3, 32, 32), layout, multipliers=multipliers)
    count = sum(p.numel() for p in network.parameters())
    if layout == "ddpm++":
        assert count == published
    else:
        assert abs(count / published - 1) < 0.02


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("layout", CHANNELS)
def test_output_starts_at_zero_in_the_shape_of_x(layout: str, size: int, channels: int) -> None:
    shape = (channels, size, size)
    network = UNet(shape, layout, channels=CHANNELS[layout], multipliers=(1, 2), blocks=1)
    assert network.attention_resolutions == ((16,) if size in (16, 32) else ())
    x = torch.randn(2, *shape)
    assert torch.equal(network(torch.rand(2), x), torch.zeros_like(x))


@pytest.mark.parametrize("multipliers", [(1,), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("layout", CHANNELS)
def test_any_multipliers_and_oblong_images(layout: str, multipliers: tuple[int, ...]) -> None:
    network = tiny(layout, (2, 4, 8), multipliers=multipliers)
    x = torch.randn(2, 2, 4, 8)
    y = network(torch.rand(2), x)
    assert y.shape == x.shape
    assert bool((y != 0).all())


@pytest.mark.parametrize("layout", CHANNELS)
def test_clock_is_resolved_on_either_scale(layout: str) -> None:
    network = tiny(layout)
    x = torch.randn(1, 1, 4, 4).expand(9, -1, -1, -1)
    for clock in (torch.linspace(0, 1, 9), torch.linspace(-2, 2, 9)):
        y = network(clock, x).flatten(1).detach()
        assert float(torch.pdist(y).min()) > 1e-3


@pytest.mark.parametrize("layout", CHANNELS)
def test_exact_trace_is_that_of_the_jacobian(layout: str) -> None:
    network, t = tiny(layout).double(), torch.rand(2, dtype=torch.float64)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    _, trace = sm.Exact()(lambda x: network(t, x), x, None)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, i=i: network(t[i : i + 1], x), x[i : i + 1]
        )
        wanted = torch.trace(jacobian.reshape(16, 16))
        torch.testing.assert_close(trace.value[i], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("layout", CHANNELS)
def test_batched_vector_jacobian_products_match_single_ones(
    layout: str, differentiable: bool
) -> None:
    """Also where torch cannot batch them, as 2.10 cannot those of a GroupNorm with a graph."""
    network, t = tiny(layout).double(), torch.rand(3, dtype=torch.float64)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    y = network(t, x)
    probes = torch.randn(4, *y.shape, dtype=torch.float64)
    batched = Products(y, x, 0.0, differentiable)(probes.flatten(2)).reshape(probes.shape)
    single = [torch.autograd.grad(y, x, probe, retain_graph=True)[0] for probe in probes]
    torch.testing.assert_close(batched, torch.stack(single), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", CHANNELS)
def test_gradient_through_a_trace_matches_finite_differences(layout: str) -> None:
    network, t = tiny(layout).double(), torch.rand(2, dtype=torch.float64)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    probes = sm.Hutchinson(2).draw(x)
    parameters = dict(network.named_parameters())
    directions = {key: torch.randn_like(value) for key, value in parameters.items()}

    def trace(step: float) -> Tensor:
        moved = {key: p + step * directions[key] for key, p in parameters.items()}
        field = torch.func.functional_call
        return sm.Hutchinson(2)(lambda x: field(network, moved, (t, x)), x, probes)[1].value.sum()

    h = 1e-5
    with torch.no_grad():
        difference = (trace(h) - trace(-h)) / (2 * h)
    grads = torch.autograd.grad(trace(0.0), list(parameters.values()), allow_unused=True)
    slope = sum(
        ((g * directions[key]).sum() for key, g in zip(parameters, grads, strict=True)
         if g is not None), torch.zeros(()).double(),
    )  # fmt: skip
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layout", CHANNELS)
def test_no_attention_is_fused(layout: str) -> None:
    """On a CPU the fused one may pass the tests above; on an accelerator it does not."""
    modules = tiny(layout).modules()
    processors = [type(m.processor).__name__ for m in modules if hasattr(m, "processor")]
    assert processors == ["AttnProcessor"] * 3  # on the way down, up, and in the middle


@pytest.mark.parametrize("layout", CHANNELS)
def test_averages_and_copies_follow_the_weights(layout: str) -> None:
    network = tiny(layout)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(network)
    before, twin = network.unet.conv_in.weight.clone(), copy.deepcopy(network)
    with torch.no_grad():
        network.unet.conv_in.weight.add_(1)
    average.update_parameters(network)
    torch.testing.assert_close(average.module.unet.conv_in.weight, before + 0.5)
    torch.testing.assert_close(twin.unet.conv_in.weight, before)
    t, x = torch.rand(2), torch.randn(2, 1, 4, 4)
    assert not torch.equal(twin(t, x), network(t, x))


@pytest.mark.parametrize("layout", CHANNELS)
def test_files_bring_back_the_same_network(layout: str, tmp_path: Path) -> None:
    network = tiny(layout, classes=3, dropout=0.1)
    model = sm.ScoreModel(network, sm.VPSDE(), preconditioning="edm")
    sm.save_model(tmp_path / "model.safetensors", model)
    again = sm.load_model(tmp_path / "model.safetensors")
    assert isinstance(again.network, UNet)
    assert again.network.attention_resolutions == (4,)
    x, label = torch.randn(2, 1, 4, 4), torch.tensor([0, 2])
    assert torch.equal(again.eps(0.3, x, label=label), model.eval().eps(0.3, x, label=label))


def test_label_is_a_conditioning_keyword_of_the_model() -> None:
    model = sm.ScoreModel(tiny("ddpm++", classes=3), sm.VPSDE())
    x = torch.ones(4, 1, 4, 4)
    eps = model.eps(0.5, x, label=torch.tensor([0, 1, 3, 3]))
    assert not torch.allclose(eps[0], eps[1])
    torch.testing.assert_close(eps[2], eps[3])
    assert torch.equal(model.eps(0.5, x), model.eps(0.5, x, label=3)), "no label is label `classes`"
    with pytest.raises(ValueError, match="from 0 to 3"):
        model.eps(0.5, x, label=4)
    with pytest.raises(TypeError, match="classes="):
        tiny("ddpm++")(torch.rand(4), x, label=0)


def test_the_main_functions_run() -> None:
    model = sm.ScoreModel(tiny("ddpm++"), sm.VPSDE(), preconditioning="edm")
    x = sm.sample(model, (2, 1, 4, 4), solver="dpmpp-2m", steps=4).x
    result = sm.log_prob(model, x, rtol=1e-2, atol=1e-2, divergence=sm.Hutchinson(2))
    assert bool(result.value.isfinite().all())


def test_it_trains() -> None:
    model = sm.ScoreModel(UNet((1, 4, 4), channels=8, multipliers=(1, 2), blocks=1), sm.VPSDE())
    data = torch.randn(1, 1, 4, 4).expand(64, -1, -1, -1)
    losses = sm.fit(model, data, steps=30, batch_size=32, warmup=2, progress=False).losses
    assert losses[-5:].mean() < 0.8 * losses[:2].mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (1, 28, 28)}, r"28x28 cannot be halved 3 times.*multiples of 8"),
        ({"image_shape": (8, 8)}, r"image_shape must be \(channels, height, width\)"),
        ({"image_shape": (0, 8, 8)}, "image_shape must hold integers of 1 or more"),
        ({"layout": "ddpm"}, r"unknown layout 'ddpm'; did you mean 'ddpm\+\+'"),
        ({"channels": 6}, "multiple of 4"),
        ({"layout": "ncsn++", "channels": 16}, "multiple of 32"),
        ({"blocks": 0}, "blocks must be an integer"),
        ({"classes": 0}, "classes must be an integer"),
        ({"multipliers": (1, 0.5)}, "multipliers must hold integers of 1 or more"),
        ({"multipliers": ()}, "multipliers must hold"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_resolutions": [7, 8]}, r"names \[7\].*\[32, 16, 8, 4\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{"image_shape": (3, 32, 32), **settings})


def test_wrong_image_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 5\).*\(1, 4, 4\)"):
        tiny("ddpm++")(torch.rand(2), torch.zeros(2, 1, 4, 5))


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install sde-models\[diffusers\]"):
        UNet((1, 8, 8))
