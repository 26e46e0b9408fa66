"""The range of the data stays with a model, and every picture and every level goes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.distributions import AffineTransform
from typer.testing import CliRunner

import sde_models as sm
from sde_models._utils.seeds import generator_at
from sde_models.cli import app
from sde_models.data import TrainingData, dequantize, read_array
from sde_models.data.pictures import draw
from sde_models.models.model_files import build_model, describe_model
from sde_models.shards import Shards
from sde_models.training import BitsPerDimCurve, SampleImages

SHAPE = (1, 4, 4)
SMALL = ("--network", "residual", "--width", 8, "--depth", 1, "--batch-size", 8, "--steps", 3)
DDIM = ("--solver", "ddim", "--steps", 2)


def make_model(data_range: tuple[float, float] | None) -> sm.ScoreModel:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork(SHAPE, width=8, depth=1)
    return sm.ScoreModel(
        network, sm.VPSDE(t_min=1e-3), preconditioning="edm", event_shape=SHAPE,
        data_range=data_range,
    )  # fmt: skip


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "--no-progress"])
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fail(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "--no-progress"])
    assert result.exit_code == 2, result.output
    return str(result.stderr).splitlines()[-1]


def pixels(path: Path) -> Tensor:
    """The grey levels of a picture of one image, which is drawn eight times as large."""
    return torch.from_numpy(np.array(Image.open(path).convert("L")))[::8, ::8]


def shown(x: Tensor, low: float, high: float) -> Tensor:
    """The grey levels that a number stands for: black at low, white at high, clipped."""
    return ((x[0, 0] - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)


# Kept


@pytest.mark.parametrize("data_range", [None, (0.0, 1.0), (-1.0, 1.0), (-0.3, 254.7)])
def test_files_keep_the_range(data_range: tuple[float, float] | None, tmp_path: Path) -> None:
    sm.save_model(tmp_path / "model.safetensors", make_model(data_range))
    assert sm.load_model(tmp_path / "model.safetensors").data_range == data_range


def test_models_of_files_without_a_range_have_none() -> None:
    settings = describe_model(make_model((0.0, 1.0)))
    del settings["data_range"]
    assert build_model(settings).data_range is None


def test_training_keeps_the_range_and_may_be_resumed_with_another(tmp_path: Path) -> None:
    data = torch.rand(8, *SHAPE)
    arguments: dict[str, Any] = {"seed": 0, "batch_size": 4, "progress": False, "out": tmp_path}
    first = sm.fit(make_model((0.0, 1.0)), data, steps=3, **arguments)
    assert first.model.data_range == (0.0, 1.0)
    for file in tmp_path.rglob("averaged.safetensors"):
        assert sm.load_model(file).data_range == (0.0, 1.0)
    again = sm.fit(make_model(None), data, steps=3, **arguments)  # nothing is left to be done
    assert again.model.data_range is None


def test_ranges_of_any_numbers_may_be_set_and_kept(tmp_path: Path) -> None:
    model, images = make_model(None), torch.tensor([0.25, 3.0])
    for given in [(images.min(), images.max()), images, images.numpy(), [0.25, 3]]:
        model.data_range = given  # type: ignore[assignment]
        assert model.data_range == (0.25, 3.0)
        sm.save_model(tmp_path / "model.safetensors", model)
        assert sm.load_model(tmp_path / "model.safetensors").data_range == (0.25, 3.0)


@pytest.mark.parametrize(
    "data_range", [(1.0, 0.0), (0.0, 0.0), (0.0, float("inf")), (0.0,), 3, "ab"]
)
def test_empty_ranges_are_refused(data_range: Any) -> None:
    with pytest.raises(ValueError, match="low < high"):
        make_model(data_range)
    with pytest.raises(ValueError, match="low < high"):
        SampleImages(1, SHAPE, data_range=data_range)
    model, images = make_model(None), torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="low < high"):
        model.data_range = data_range
    with pytest.raises(ValueError, match="low < high"):
        sm.bits_per_dim(model, images, 2, data_range=data_range)


# Levels


def test_bits_spread_levels_over_the_range_of_the_model(tmp_path: Path) -> None:
    """Bits are those of the range given by hand, in the evaluation of a data set too."""
    mixture = sm.GaussianMixture(torch.full((1, 2), 0.5, dtype=torch.float64), 0.2)
    model = mixture.score_model(sm.VPSDE())
    images = torch.tensor([[3, 4], [0, 7]])
    settings: dict[str, Any] = {
        "rtol": 1e-6,
        "atol": 1e-6,
        "prior": mixture.diffuse(model.sde, 1.0),
    }

    def bits(**changes: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return sm.bits_per_dim(
            model, images, 8, generator=generator, **settings, **changes
        ).per_image

    given, usual = bits(data_range=(0.0, 1.0)), bits()
    evaluated = sm.evaluate(
        model, images, tmp_path / "a", levels=8, progress=False, data_range=(0.0, 1.0), **settings
    )
    model.data_range = (0.0, 1.0)
    assert torch.equal(bits(), given)
    assert (usual - given).abs().min() > 0.1
    assert torch.equal(bits(data_range=(-1.0, 1.0)), usual)
    # The range is that of the model's space: with a transform there, levels keep to -1 and 1.
    assert torch.allclose(bits(transform=AffineTransform(0.5, 0.5)), given)
    again = sm.evaluate(model, images, tmp_path / "b", levels=8, progress=False, **settings)
    assert torch.equal(again.value, evaluated.value)
    model.data_range = (0.0, 2.0)
    with pytest.raises(ValueError, match=r"data_range: \(0.0, 1.0\) there, \(0.0, 2.0\) now"):
        sm.evaluate(model, images, tmp_path / "b", levels=8, progress=False, **settings)


def test_latents_of_levels_are_those_of_numbers_in_the_range(tmp_path: Path) -> None:
    model = make_model((0.0, 1.0))
    levels = torch.randint(0, 16, (3, *SHAPE))
    arguments: dict[str, Any] = {"solver": "ddim", "steps": 2, "progress": False}
    found = sm.encode_to_folder(model, levels, tmp_path / "z", levels=16, **arguments)
    generator = generator_at(0, 0)
    x = dequantize(levels, 16, data_range=(0.0, 1.0), generator=generator)
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(torch.stack(list(found)), sm.encode(model, x, **arguments).z)
    model.data_range = (-1.0, 1.0)
    with pytest.raises(ValueError, match="data_range"):
        sm.encode_to_folder(model, levels, tmp_path / "z", levels=16, **arguments)


# Pictures


@pytest.mark.parametrize(
    ("of_model", "given", "taken"),
    [
        (None, None, (-1.0, 1.0)),
        ((0.0, 1.0), None, (0.0, 1.0)),
        ((0.0, 1.0), (-2.0, 3.0), (-2.0, 3.0)),
    ],
)
def test_samples_drawn_on_the_way(
    of_model: Any, given: Any, taken: tuple[float, float], tmp_path: Path
) -> None:
    model = make_model(of_model)
    show = SampleImages(2, SHAPE, tmp_path, count=1, data_range=given, solver="ddim", steps=2)
    bits = BitsPerDimCurve(2, torch.ones(1, *SHAPE), 2, solver="ode:rk4", steps=3)
    data = torch.rand(8, *SHAPE)
    trained = sm.fit(model, data, steps=2, progress=False, seed=0, callback=[show, bits]).model
    generator = torch.Generator().manual_seed(0)
    x = sm.sample(trained, (1, *SHAPE), solver="ddim", steps=2, generator=generator).x
    written = np.array(Image.open(tmp_path / "step-00000002.png").convert("L"))
    assert torch.equal(torch.from_numpy(written), shown(x, *taken))
    wanted = sm.bits_per_dim(
        trained, torch.ones(1, *SHAPE), 2, data_range=of_model or (-1.0, 1.0),
        generator=torch.Generator().manual_seed(0), solver="ode:rk4", steps=3,
    )  # fmt: skip
    assert bits.curve[2] == float(wanted.value)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Floating data on [0, 1], both ends included."""
    x = np.random.default_rng(0).random((64, *SHAPE)).astype(np.float32)
    x.reshape(-1)[:2] = 0, 1
    np.save(tmp_path / "images.npy", x)
    return tmp_path / "images.npy"


def test_the_command_line_draws_in_the_range_of_the_data(images: Path, tmp_path: Path) -> None:
    run("train", images, *SMALL, "--samples-every", 3, "--out", tmp_path / "run")
    model = sm.load_model(tmp_path / "run" / "model.safetensors")
    assert model.data_range == (0.0, 1.0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data_range"] == "0.0,1.0"
    generator = torch.Generator().manual_seed(0)
    x = sm.sample(model, (64, *SHAPE), generator=generator, solver="dpmpp-2m", steps=30).x
    assert (tmp_path / "run" / "samples.png").read_bytes() == draw(x, data_range=(0.0, 1.0))

    one = (tmp_path / "run", "-n", 1, *DDIM, "--out")
    run("sample", *one, tmp_path / "x.npz")
    run("sample", *one, tmp_path / "x.png")
    run("sample", *one, tmp_path / "wide.png", "--data-range", "-1,3")
    x = read_array(tmp_path / "x.npz")
    assert x.shape == (1, *SHAPE)
    assert torch.equal(pixels(tmp_path / "x.png"), shown(x, 0, 1))
    assert torch.equal(pixels(tmp_path / "wide.png"), shown(x, -1, 3))

    latents = (tmp_path / "run", images, "-n", 1, *DDIM, "--out")
    run("encode", *latents, tmp_path / "z.npz")
    run("encode", *latents, tmp_path / "z.png")
    z = read_array(tmp_path / "z.npz")
    assert torch.equal(pixels(tmp_path / "z.png"), shown(z, -3, 3))  # three deviations of noise
    back = (tmp_path / "run", tmp_path / "z.npz", *DDIM, "--out")
    run("decode", *back, tmp_path / "back.npz")
    run("decode", *back, tmp_path / "back.png")
    run("decode", *back, tmp_path / "wide-back.png", "--data-range", "-1,3")
    x = read_array(tmp_path / "back.npz")
    assert torch.equal(pixels(tmp_path / "back.png"), shown(x, 0, 1))
    assert torch.equal(pixels(tmp_path / "wide-back.png"), shown(x, -1, 3))


def test_the_command_line_takes_a_range(images: Path, tmp_path: Path) -> None:
    """In training; and for levels that a model of floating data is asked about."""
    run("train", images, *SMALL, "--data-range", "-0.5,2", "--out", tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    assert sm.load_model(file).data_range == (-0.5, 2.0)
    run("train", "--config", tmp_path / "run" / "config.json", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == file.read_bytes()
    levels = np.random.default_rng(0).integers(0, 16, (2, *SHAPE)).astype(np.uint16)
    np.save(tmp_path / "levels.npy", levels)
    words = (file, tmp_path / "levels.npy", "--levels", 16)
    quick = ("--solver", "ode:rk4", "--steps", 3)
    for given, data_range in [((), (-0.5, 2.0)), (("--data-range", "0,1"), (0.0, 1.0))]:
        model = sm.load_model(file)
        model.data_range = data_range
        z, lp = tmp_path / f"z{len(given)}", tmp_path / f"lp{len(given)}"
        run("encode", *words, *DDIM, *given, "--out", z)
        run("log-prob", *words, *quick, *given, "--out", lp)
        x = torch.from_numpy(levels)
        wanted = sm.encode_to_folder(
            model, x, tmp_path / f"w{z.name}", levels=16, solver="ddim", steps=2, progress=False
        )
        assert torch.equal(torch.stack(list(Shards(z))), torch.stack(list(wanted)))
        bits = sm.evaluate(
            model, x, tmp_path / f"w{lp.name}", levels=16, solver="ode:rk4", steps=3, progress=False
        )
        assert torch.equal(torch.stack(list(Shards(lp))), bits.value)


def test_levels_have_the_usual_range(tmp_path: Path) -> None:
    np.save(tmp_path / "levels.npy", np.random.default_rng(0).integers(0, 16, (8, *SHAPE)))
    words = ("train", tmp_path / "levels.npy", "--levels", 16, *SMALL, "--out", tmp_path / "run")
    assert "levels are spread over -1 to 1" in fail(*words, "--data-range", "0,1")
    run(*words)
    assert sm.load_model(tmp_path / "run" / "model.safetensors").data_range == (-1.0, 1.0)


@pytest.mark.parametrize("text", ["1,0", "0", "a,b", "0,1,2", "0,inf"])
def test_what_is_no_range_is_refused(text: str, images: Path, tmp_path: Path) -> None:
    sm.save_model(tmp_path / "model.safetensors", make_model(None))
    message = f"the lowest and the highest number of the data, such as 0,1; got '{text}'"
    words = ("--data-range", text, "--out", tmp_path / "x")
    assert message in fail("sample", tmp_path / "model.safetensors", *words)
    assert message in fail("train", images, *words)


@pytest.mark.parametrize(
    ("low", "high", "taken"),
    [
        (0, 1, (0, 1)), (0.01, 0.98, (0, 1)), (0.2, 0.96, (0, 1)), (0, 0.5, (0, 0.5)),
        (-1, 1, (-1, 1)), (-0.98, 0.97, (-1, 1)), (-0.5, 0.5, (-0.5, 0.5)),
        (-0.02, 0.99, (-0.02, 0.99)),  # overshoots of numbers on [0, 1]
        (0, 255, (0, 255)), (3, 251, (0, 255)), (0, 100, (0, 100)), (0.5, 1.5, (0.5, 1.5)),
        (-3, 4, (-3, 4)), (-1, 1.001, (-1, 1.001)),
    ],
)  # fmt: skip
def test_floating_data_have_a_usual_range_or_their_own(
    low: float, high: float, taken: tuple[float, float]
) -> None:
    x = torch.tensor([[low, high], [(low + high) / 2, high]], dtype=torch.float64)
    assert TrainingData(x).data_range == taken


def test_ranges_of_training_data() -> None:
    x = torch.linspace(-0.25, 3, 20_001, dtype=torch.float64)[:, None]
    assert TrainingData(x).data_range == (-0.25, 3.0)
    assert TrainingData(torch.randint(0, 4, (9, 2)), levels=4).data_range == (-1.0, 1.0)
    assert TrainingData(torch.ones(3, 2)).data_range is None

    class Items(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> Tensor:
            return x[index]

    assert TrainingData(Items()).data_range == (-0.25, float(x[9_999]))
