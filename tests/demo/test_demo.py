"""The demonstration: its measures against closed forms, and a tiny run of the whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_models._utils.owned_folders import MARKER
from sde_models.data import dequantize, digits
from sde_models.demo import DemoSettings, run_demo, summary
from sde_models.demo import run as demo_run
from sde_models.demo.measure import (
    SAMPLERS,
    compare_samplers,
    fit_gaussian,
    interpolate,
    mean_and_error,
    measure_density,
    round_trip,
    spherical,
)
from sde_models.models.base import Model
from sde_models.models.gaussian_mixture import GaussianMixture
from sde_models.models.model_files import load_model
from sde_models.sdes import VPSDE

TINY = DemoSettings(train_steps=30, width=16, test_images=4, samples=3)


def gaussian_model(s: float, event_shape: tuple[int, ...]) -> Model:
    mixture = GaussianMixture(torch.zeros(1, math.prod(event_shape)), s)
    return mixture.score_model(VPSDE(t_min=1e-4), event_shape)


def test_fitted_gaussian_has_the_moments_of_dequantised_images() -> None:
    """Against 200,000 dequantised images: within five standard errors of 9 moments."""
    images = torch.tensor([[0, 3], [2, 1], [3, 3]], dtype=torch.uint8)
    gaussian = fit_gaussian(images, 4)
    copies = images.repeat(66_667, 1)
    generator = torch.Generator().manual_seed(0)
    x = dequantize(copies, 4, generator=generator, dtype=torch.float64)
    count = len(x)
    mean_error = x.std(0) / math.sqrt(count)
    assert bool(((x.mean(0) - gaussian.mean()).abs() < 5 * mean_error).all())
    centred = x - x.mean(0)
    products = centred[:, :, None] * centred[:, None]
    covariance_error = products.std(0) / math.sqrt(count)
    gap = (products.mean(0) - gaussian.covariance()).abs()
    assert bool((gap < 5 * covariance_error).all())


def test_spherical_interpolation_keeps_norms_and_turns_evenly() -> None:
    first = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])
    last = torch.tensor([[[0.0, 3.0, 0.0]], [[0.0, 0.0, -2.0]]])
    assert torch.allclose(spherical(first, last, 0.0), first, atol=1e-6)
    assert torch.allclose(spherical(first, last, 1.0), last, atol=1e-6)
    third = spherical(first, last, 1 / 3)
    expected = torch.tensor([[[math.sqrt(3) / 2, 0.5, 0.0]], [[0.0, math.sqrt(3) / 2, -0.5]]])
    assert torch.allclose(third, torch.tensor([3.0, 2.0])[:, None, None] * expected, atol=1e-6)


def test_interpolation_of_a_gaussian_is_that_of_its_latents() -> None:
    """The flow of N(0, s^2 I) only scales: from the prior's deviation to that at t_min."""
    s, model = 0.5, gaussian_model(0.5, (1, 2, 2))
    first, last = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images = interpolate(model, first, last, count=5, progress=False)
    assert images.shape == (3, 5, 1, 2, 2)
    sde = model.sde
    deviation = [
        math.hypot(float(sde.alpha(t)) * s, float(sde.sigma(t))) for t in (sde.t_min, sde.t_max)
    ]
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        expected = deviation[0] / deviation[1] * spherical(first, last, share)
        assert torch.allclose(images[:, i], expected, atol=2e-3)


def test_samplers_draw_from_the_model_and_know_their_error() -> None:
    model = gaussian_model(0.5, (1, 2, 2))
    runs = compare_samplers(model, (200, 1, 2, 2), 17, seed=0, progress=False)
    assert [run.solver for run in runs] == [name for name, _ in SAMPLERS]
    assert len(runs) >= 4
    assert {run.stochastic for run in runs} == {True, False}
    for run in runs:
        assert run.drawn.x.shape == (200, 1, 2, 2)
        assert run.drawn.nfe > 0
        # 800 numbers: five standard errors of a deviation are 5 / sqrt(2 * 800) = 12.5 percent.
        assert float(run.drawn.x.std()) == pytest.approx(0.5, rel=0.125)
        if run.stochastic:
            assert run.error is None
        else:
            assert run.error is not None
            assert 0 < run.error < 0.02
    flows = [run.drawn.x for run in runs if not run.stochastic]
    assert float((flows[0] - flows[1]).abs().max()) < 1e-2


@pytest.mark.parametrize(
    ("dtype", "tolerance", "most"), [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-7, 1e-6)]
)
def test_round_trip_comes_back(dtype: torch.dtype, tolerance: float, most: float) -> None:
    means = torch.tensor([[-0.5, -0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]])
    model = GaussianMixture(means, 0.2).score_model(VPSDE(t_min=1e-4), (1, 2, 2))
    x = means.reshape(2, 1, 2, 2).double() + 0.1
    trip = round_trip(model, x, dtype, tolerance, progress=False)
    assert trip.back.x.dtype == dtype
    assert trip.dtype == str(dtype).split(".")[1]
    assert torch.equal(trip.errors, (trip.back.x - x.to(dtype)).abs().flatten(1).amax(1))
    assert float(trip.errors.max()) < most
    assert trip.there.nfe > 0
    assert trip.back.nfe > 0
    assert model.dtype == torch.float32, "the model itself keeps its precision"


def test_density_of_the_gaussian_as_a_model_equals_its_own() -> None:
    """The flow of the fitted Gaussian has its density, but for the prior at t_max and t_min."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (50, 1, 2, 2), generator=generator)
    gaussian = fit_gaussian(images, 17).float()
    model = gaussian.score_model(VPSDE(t_min=1e-4), (1, 2, 2))
    density = measure_density(model, images[:8], images, 17, tolerance=1e-5, seed=3, progress=False)
    assert density.gaussian.shape == (8,)
    assert float(density.gain.abs().max()) < 5e-3
    # In closed form at the very points that the seed gives.
    x = dequantize(images[:8], 17, generator=torch.Generator().manual_seed(3)).double()
    nats = -fit_gaussian(images, 17).log_prob(x) - 4 * math.log(2 / 17)
    assert torch.allclose(density.gaussian, nats / (4 * math.log(2)))


def test_mean_and_error() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = {"value": 3.0, "stderr": math.sqrt(14 / 3 / 4)}
    assert mean_and_error(values) == pytest.approx(expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return folder, run_demo(folder, seed=1, settings=TINY, progress=False)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_run_leaves_metrics_model_and_page(tiny: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = tiny
    names = {entry.name for entry in folder.iterdir()}
    assert names == {MARKER, "metrics.json", "model.safetensors", "report.html"}
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert load_model(folder / "model.safetensors").event_shape == (1, 8, 8)
    assert load_model(folder / "model.safetensors").data_range == (-1.0, 1.0)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert page.count("<table") == 3
    assert f"{metrics['bits_per_dim']['value']:.3f}" in page
    for name, _ in SAMPLERS:
        assert name in page


def test_metrics_hold_every_measure(tiny: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = tiny
    bits, gaussian = metrics["bits_per_dim"], metrics["gaussian_bits_per_dim"]
    gain = metrics["gain_over_gaussian"]
    assert gain["value"] == pytest.approx(gaussian["value"] - bits["value"], abs=1e-5)
    assert bits["stderr"] > 0
    assert metrics["round_trip"]["float32"]["largest_error"] < 1e-3
    assert metrics["round_trip"]["float64"]["largest_error"] < 1e-5
    assert len(metrics["samplers"]) >= 4
    assert metrics["training"]["steps"] == 30
    assert metrics["settings"]["seed"] == 1


def test_gaussian_of_the_digits_is_the_known_baseline() -> None:
    """A fixed figure: 2.95 bits/dim with dequantisation noise of standard error below 0.01."""
    data = digits()
    gaussian = fit_gaussian(data.train, data.levels)
    x = dequantize(data.test, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bits = -(gaussian.log_prob(x) / 64 + math.log(2 / 17)) / math.log(2)
    assert float(bits.mean()) == pytest.approx(2.95, abs=0.05)


def test_summary_says_the_main_figures(tiny: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = tiny
    text = summary(metrics)
    assert f"{metrics['bits_per_dim']['value']:.3f}" in text
    assert "round trip, float64" in text
    assert "euler-maruyama" in text


def test_seed_fixes_every_figure_and_the_threads_are_given_back(
    tiny: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(99)  # which must not matter
    out = tmp_path / "again"
    shutil.copytree(tiny[0], out)  # what is ours is replaced, and nothing else
    (out / "report.html").write_text("an earlier one")
    (out / "notes.txt").write_text("mine")
    again = run_demo(out, seed=1, settings=TINY, progress=False)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "report.html").read_text().startswith("<!")
    assert without_times(again) == without_times(tiny[1])
    assert torch.get_num_threads() == threads


def test_a_folder_that_cannot_be_used_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("training began")

    monkeypatch.setattr(demo_run, "train", train)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file of that name; choose another"):
        run_demo(tmp_path / "file", progress=False)
    with pytest.raises(NotADirectoryError, match="cannot be written to"):
        run_demo(tmp_path / "file" / "below", progress=False)


@pytest.mark.parametrize(
    "arguments", [{"test_images": 1}, {"test_images": 361}, {"samples": 0}, {"train_steps": 0}]
)
def test_settings_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DemoSettings(**arguments)
