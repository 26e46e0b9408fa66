"""The training loop and its checkpoints: exactness where it can be had, closed forms elsewhere."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sde_models.losses import denoising_score_matching
from sde_models.models.energy_model import EnergyModel
from sde_models.models.model_files import load_model, save_model
from sde_models.models.score_model import ScoreModel
from sde_models.nn import ResidualNetwork
from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.sdes.gaussian import GaussianSDE
from sde_models.training import Progress, fit


def small_model(seed: int = 0, **arguments: Any) -> ScoreModel:
    torch.manual_seed(seed)
    return ScoreModel(ResidualNetwork((2,), width=16, depth=1), VPSDE(), **arguments)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """A network with one weight, for which least squares has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.k * x


def test_fit_reaches_the_least_squares_solution() -> None:
    r"""At one time, data N(0, s^2) and eps = k x the best k is sigma / (alpha^2 s^2 + sigma^2)."""
    sde, s = VPSDE(), 0.5
    model = ScoreModel(Scale(), sde)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    x0, noise = s * signs[:, :1], signs[:, 1:]

    def loss(model: Any, x0: Tensor, **_: Any) -> Tensor:
        return denoising_score_matching(model, x0, 0.3, noise)

    result = fit(
        model, lambda *_: x0, steps=300, batch_size=4, learning_rate=0.05, loss=loss,
        ema_decay=0.9, warmup=10, progress=False,
    )  # fmt: skip
    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    best = sigma / (alpha**2 * s**2 + sigma**2)
    assert float(result.model.network.k.detach()) == pytest.approx(best, abs=1e-4)
    # The loss there is the variance of the noise that x leaves unexplained.
    assert float(result.losses[-1]) == pytest.approx(1 - sigma * best, abs=1e-6)


def test_average_is_the_moving_average_of_the_raw_weights() -> None:
    model, raw = small_model(), []
    result = fit(
        model, DATA, steps=12, batch_size=8, ema_decay=0.7, progress=False,
        callback=lambda progress: raw.append(weights(progress.model)),
    )  # fmt: skip
    expected = raw[0]
    for step in raw[1:]:
        expected = 0.7 * expected + 0.3 * step
    assert torch.allclose(weights(result.model), expected, atol=1e-6)
    assert torch.equal(weights(model), raw[-1])
    assert not torch.allclose(weights(model), weights(result.model), atol=1e-5)


def test_raw_and_averaged_weights_share_no_memory_and_modes() -> None:
    model = small_model()
    result = fit(model, DATA, steps=3, batch_size=8, progress=False)
    before = weights(result.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(weights(result.model), before)
    assert model.training
    assert not any(module.training for module in result.model.modules())
    assert type(result.model) is ScoreModel


def test_generator_fixes_the_run_and_the_global_one_is_left_alone() -> None:
    runs = []
    for seed in (7, 7, 8):
        model = small_model()
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        result = fit(model, DATA, steps=6, batch_size=8, generator=generator, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(result)
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))
    assert torch.equal(runs[0].losses, runs[1].losses)
    assert not torch.equal(runs[0].losses, runs[2].losses)


def test_conditions_of_a_source_reach_the_loss() -> None:
    seen = []

    def source(batch_size: int, generator: torch.Generator | None) -> Any:
        return torch.zeros(batch_size, 2), {"label": torch.arange(batch_size)}

    def loss(model: Any, x0: Tensor, *, generator: Any, cond: Any) -> Tensor:
        seen.append(cond["label"].tolist())
        return denoising_score_matching(model, x0, generator=generator)

    fit(small_model(), source, steps=2, batch_size=3, loss=loss, progress=False)
    assert seen == [[0, 1, 2], [0, 1, 2]]


def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    """Adam's first steps on a constant gradient have the length of the learning rate."""
    model = ScoreModel(Scale(), VPSDE())
    path = []

    def loss(model: Any, x0: Tensor, **_: Any) -> Tensor:
        return -model.network.k

    fit(
        model, torch.zeros(1, 1, dtype=torch.float64), steps=20, loss=loss, learning_rate=0.1,
        warmup=4, progress=False,
        callback=lambda progress: path.append(float(progress.model.network.k.detach())),
    )  # fmt: skip
    lengths = torch.tensor([0.0, *path], dtype=torch.float64).diff()
    steps = torch.arange(20, dtype=torch.float64)
    expected = 0.1 * ((steps + 1) / 4).clamp(max=1) * 0.5 * (1 + torch.cos(math.pi * steps / 20))
    assert torch.allclose(lengths, expected, rtol=1e-6)


def test_gradients_are_clipped() -> None:
    sizes = []

    def loss(model: Any, x0: Tensor, **_: Any) -> Tensor:
        return 1e6 * model.network.k

    fit(
        ScoreModel(Scale(), VPSDE()),
        torch.zeros(1, 1, dtype=torch.float64),
        steps=1,
        loss=loss,
        clip_norm=0.25,
        progress=False,
        callback=lambda progress: sizes.append(float(progress.model.network.k.grad)),
    )
    assert sizes == pytest.approx([0.25], rel=1e-5)


def test_seconds_end_a_run() -> None:
    result = fit(small_model(), DATA, seconds=0.2, batch_size=4, progress=False)
    assert 0.2 <= result.seconds < 5
    assert result.steps == len(result.losses) >= 1


def test_callback_sees_step_loss_and_both_models() -> None:
    seen: list[Progress] = []
    result = fit(small_model(), DATA, steps=3, batch_size=4, progress=False, callback=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert [progress.loss for progress in seen] == result.losses.tolist()
    assert seen[-1].averaged is result.model


def test_progress_bar_shows_loss_and_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    fit(small_model(), DATA, steps=40, batch_size=4, progress=True)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "loss=" in shown
    assert "steps/s" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of steps and seconds"),
        ({"steps": 1, "seconds": 1.0}, "exactly one of steps and seconds"),
        ({"steps": 0}, "steps must be an integer of 1 or more"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"steps": 1, "batch_size": 0}, "batch_size"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate"),
        ({"steps": 1, "learning_rate": math.nan}, "learning_rate"),
        ({"steps": 1, "weight_decay": -1.0}, "weight_decay"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay"),
        ({"steps": 1, "clip_norm": 0.0}, "clip_norm"),
        ({"steps": 1, "warmup": -1}, "warmup"),
        *(
            ({"steps": 1, name: None}, f"{name} must .*, got None")
            for name in (
                "batch_size", "learning_rate", "weight_decay", "ema_decay", "warmup", "clip_norm",
                "gradient_accumulation_steps", "checkpoint_every", "keep", "resume", "progress",
            )
        ),
        ({"steps": 1, "learning_rate": True}, "learning_rate must be positive"),
        ({"steps": 1, "ema_decay": False}, "ema_decay must lie in"),
        ({"seconds": "1"}, "seconds must be positive and finite, got '1'"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(small_model(), DATA, **{"progress": False} | arguments)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.tensor([[0.0, math.nan]]), ValueError, "data holds NaN"),
        (torch.zeros(3, 2, dtype=torch.uint8), TypeError, "data has dtype"),
        (torch.zeros(4, 3), ValueError, r"event shape \(3,\)"),
    ],
)
def test_bad_data_are_refused(data: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(small_model(event_shape=(2,)), data, steps=1, progress=False)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched() -> None:
    model = small_model()
    steps = []

    def loss(model: Any, x0: Tensor, *, generator: Any) -> Tensor:
        value = denoising_score_matching(model, x0, generator=generator)
        return value * math.nan if len(steps) == 2 else value

    with pytest.raises(FloatingPointError, match="nan at step 3"):
        fit(
            model, DATA, steps=5, batch_size=4, loss=loss, progress=False,
            callback=lambda progress: steps.append(progress.step),
        )  # fmt: skip
    assert bool(torch.isfinite(weights(model)).all())


# Checkpoints.

SDES: list[GaussianSDE] = [
    VPSDE(0.2, 15.0, t_min=1e-4, data_std=0.5),
    SubVPSDE(0.3, 10.0, t_min=2e-3, t_max=0.9, data_std=0.6),
    VESDE(0.02, 30.0, t_max=0.8, data_std=0.7),
    CosineSDE(t_min=2e-3, t_max=0.99, data_std=0.8),
    FlowMatchingSDE(t_min=3e-3, t_max=0.98, data_std=0.9),
]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    "names",
    [
        *({"prediction": name} for name in ("eps", "x0", "v", "score", "velocity")),
        {"preconditioning": "edm"},
    ],
    ids=lambda names: "-".join(names.values()),
)
def test_a_saved_model_comes_back_bit_for_bit(
    tmp_path: Path, sde: GaussianSDE, names: dict[str, str]
) -> None:
    torch.manual_seed(0)
    network = ResidualNetwork((1, 2), width=8, depth=2, classes=3, frequencies=5)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    model = ScoreModel(network, sde, **names, event_shape=(1, 2))
    save_model(tmp_path / "model.safetensors", model)
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert loaded.event_shape == (1, 2)
    x = torch.randn(4, 1, 2)
    t = torch.linspace(sde.t_min, sde.t_max, 4)
    assert torch.equal(loaded.score(t, x, label=2), model.score(t, x, label=2))
    for argument in inspect.signature(type(sde)).parameters:
        assert getattr(loaded.sde, argument) == getattr(sde, argument)


def test_the_file_is_plain_safetensors_with_json_settings(tmp_path: Path) -> None:
    model = small_model()
    save_model(tmp_path / "model", model)
    raw = (tmp_path / "model").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    settings = json.loads(header["__metadata__"]["sde_models"])
    assert settings["sde"]["class"] == "VPSDE"
    assert settings["sde"]["arguments"]["beta_max"] == 20.0
    assert settings["network"]["arguments"]["width"] == 16
    buffers = {"network.clock.0.frequencies"}  # which is not persistent
    assert set(header) - {"__metadata__"} == set(model.state_dict()) | buffers


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    save_model(path, small_model(seed=0))
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(path, small_model(seed=1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_classes_of_others_are_refused(tmp_path: Path) -> None:
    class MySDE(VPSDE):
        pass

    network = ResidualNetwork((2,), width=8, depth=1)
    for model, message in [
        (ScoreModel(Scale(), VPSDE()), "network of this library.*Scale.*safetensors"),
        (ScoreModel(network, MySDE()), "SDE of this library.*MySDE.*safetensors"),
        (EnergyModel(network, VPSDE()), "EnergyModel"),
    ]:
        with pytest.raises(TypeError, match=message):
            save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model(path)
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not written by save_model"):
        load_model(path)
