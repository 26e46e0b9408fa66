"""Training on every device that is here: precisions, resuming, model files, callbacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_models as sm
from sde_models.training import BitsPerDimCurve, Progress, SampleImages
from sde_models.training.loop import Loop

MIXTURE = sm.GaussianMixture([[-1.0, 0.2], [0.8, -0.3]], [0.3, 0.5], [0.4, 0.6])
DATA = MIXTURE.sample(512, generator=torch.Generator().manual_seed(0))


class Dropped(nn.Module):
    """A network with dropout, which draws from the global generator of its device."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_network()
        self.dropout = nn.Dropout(0.1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.inner(t, self.dropout(x))
        return out


def small_network(**arguments: Any) -> nn.Module:
    return sm.nn.ResidualNetwork((2,), width=32, depth=2, **arguments)


def make_model(device: str, make: Callable[[], nn.Module] = small_network) -> sm.ScoreModel:
    torch.manual_seed(0)
    return sm.ScoreModel(make(), sm.VPSDE(t_min=1e-3)).to(device)


def train(device: str, steps: int = 100, **changes: Any) -> sm.Fit[Any]:
    model = changes.pop("model", None) or make_model(device)
    arguments = {"steps": steps, "batch_size": 128, "seed": 3, "progress": False}
    return sm.fit(model, changes.pop("data", DATA), **arguments | changes)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_the_same(device: str, precision: str) -> None:
    """Data, times and noise are the same, so rounding alone tells the losses apart: 2**-8 in bf16,
    which the sum over the network's layers makes a few times larger."""
    full, mixed = (train(device, mixed_precision=p) for p in (None, precision))
    assert next(mixed.model.parameters()).dtype == torch.float32
    assert mixed.model.device.type == device
    first, last = mixed.losses[:10].mean(), mixed.losses[-30:].mean()
    assert last < 0.8 * first
    torch.testing.assert_close(last, full.losses[-30:].mean(), rtol=0.03, atol=0)


def stop(progress: Progress) -> None:
    if progress.step == 13:
        raise InterruptedError


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_a_run_is_resumed_bit_for_bit(device: str, precision: str | None, tmp_path: Path) -> None:
    """Dropout and the scale of the gradients included."""

    def run(name: str, **changes: Any) -> sm.Fit[Any]:
        model = make_model(device, Dropped)
        torch.manual_seed(5)
        return train(
            device, 20, model=model, out=tmp_path / name, checkpoint_every=10,
            mixed_precision=precision, **changes,
        )  # fmt: skip

    whole = run("whole")
    with pytest.raises(InterruptedError):
        run("part", callback=stop)
    resumed = run("part")
    assert torch.equal(resumed.losses, whole.losses)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("there", ["cpu", "device"])
def test_a_run_goes_on_on_another_device(device: str, there: str, tmp_path: Path) -> None:
    begun, ended = (device, "cpu") if there == "cpu" else ("cpu", device)
    with pytest.raises(InterruptedError):
        train(begun, 20, out=tmp_path, checkpoint_every=10, callback=stop)
    resumed = train(ended, 20, out=tmp_path, checkpoint_every=10)
    assert resumed.model.device.type == ended
    assert resumed.steps == 20
    assert torch.equal(resumed.losses[:10], train(begun, 20).losses[:10])


def test_a_dataset_read_by_workers(device: str) -> None:
    labels = (DATA[:, 0] > 0).long()
    data = [(x, {"label": int(label)}) for x, label in zip(DATA[:64], labels, strict=False)]
    found = [
        train(
            device,
            5,
            data=data,
            batch_size=16,
            num_workers=workers,
            model=make_model(device, partial(small_network, classes=2)),
        ).losses
        for workers in (0, 1)
    ]
    assert torch.equal(*found)


def test_data_on_the_device(device: str) -> None:
    assert torch.equal(train(device, 5).losses, train(device, 5, data=DATA.to(device)).losses)


def test_callbacks_and_their_files(device: str, tmp_path: Path) -> None:
    network = sm.nn.ResidualNetwork((1, 4, 4), width=16, depth=1)
    images = torch.randint(0, 8, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    curve = BitsPerDimCurve(2, images, levels=8, rtol=1e-2, atol=1e-2)
    show = SampleImages(2, (1, 4, 4), tmp_path / "images", count=4, steps=2)
    model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3)).to(device)
    fit = train(
        device, 4, model=model, data=torch.randn(64, 1, 4, 4), batch_size=8,
        callback=[show, curve], log_dir=tmp_path / "log",
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        "step-00000002.png", "step-00000004.png",
    ]  # fmt: skip
    wanted = sm.bits_per_dim(
        fit.model, images, 8, generator=torch.Generator().manual_seed(0), rtol=1e-2, atol=1e-2
    )
    assert list(curve.curve) == [2, 4]
    assert curve.curve[4] == pytest.approx(float(wanted.value), abs=1e-4)


def test_learned_times_and_maximum_likelihood(device: str) -> None:
    loss = partial(
        sm.losses.denoising_score_matching, weighting="likelihood", times=sm.losses.LearnedTimes()
    )
    fit = train(device, 20, loss=loss)
    assert float(fit.losses[-5:].mean()) < float(fit.losses[:5].mean())
    tuned = train(
        device, 2, model=fit.model, batch_size=8,
        loss=partial(sm.maximum_likelihood_loss, rtol=1e-2, atol=1e-2, intervals=12),
    )  # fmt: skip
    assert bool(torch.isfinite(tuned.losses).all())


def test_model_files_go_from_device_to_device(device: str, tmp_path: Path) -> None:
    model = make_model(device)
    for parameter in model.parameters():  # its output starts at zero
        nn.init.normal_(parameter, std=0.2)
    sm.save_model(tmp_path / "model.safetensors", model)
    back = sm.load_model(tmp_path / "model.safetensors")
    assert back.device.type == "cpu"
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), back.state_dict()[name])
    x = torch.randn(4, 2)
    there = back.to(device).eps(0.5, x.to(device))
    assert torch.equal(there, model.eval().eps(0.5, x.to(device)))


def test_a_run_begun_on_a_gpu_goes_on_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its checkpoint holds the state of a generator that is not there."""
    monkeypatch.setattr(
        Loop,
        "_generators",
        lambda self: {"cpu": [torch.get_rng_state()], "cuda": [torch.zeros(16, dtype=torch.uint8)]},
    )
    with pytest.raises(InterruptedError):
        train("cpu", 20, out=tmp_path, checkpoint_every=10, callback=stop)
    assert train("cpu", 20, out=tmp_path, checkpoint_every=10).steps == 20
