"""Training on the command line, from data to samples and likelihoods, and all that goes wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from support.two_processes import run_two
from typer.testing import CliRunner

import sde_models as sm
from sde_models._utils.owned_folders import MARKER
from sde_models.cli import app
from sde_models.data import read_array
from sde_models.training import Progress

SMALL = ("--network", "residual", "--width", 8, "--depth", 1, "--batch-size", 8)
QUICK = (*SMALL, "--steps", 12, "--checkpoint-every", 5)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words), "--no-progress"])


def run(*words: object) -> str:
    """What a command says, if it ends well."""
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fail(*words: object, code: int = 2) -> str:
    """The one line of a mistake."""
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    return str(result.stderr).splitlines()[-1]


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def points(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    return save(tmp_path / "points.npz", x=x)


def weights(out: Path) -> torch.Tensor:
    model = sm.load_model(out / "model.safetensors")
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_train_sample_and_score_a_gaussian(tmp_path: Path) -> None:
    """The density of a trained model is that of its data, to a tenth of a nat."""
    std = np.array([1.0, 0.5])
    draw = np.random.default_rng(0).normal
    train = save(tmp_path / "train.npz", x=std * draw(size=(4096, 2)))
    test = save(tmp_path / "test.npz", x=std * draw(size=(64, 2)))
    out = tmp_path / "run"
    words = ("--width", 32, "--depth", 1, "--steps", 600, "--ema-decay", 0.98)
    said = run("train", train, *words, "--out", out)
    model = out / "model.safetensors"
    assert said.startswith(f"{model}: 600 steps in ")
    config = json.loads((out / "config.json").read_text())
    assert config["network"] == "residual"
    assert config["data_std"] == pytest.approx(math.sqrt((1 + 0.25) / 2), rel=0.05)
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")

    scored = tmp_path / "scored.npz"
    run("log-prob", model, test, "--dtype", "float32", "--tol", 0.02, "--out", scored)
    x = read_array(test)
    exact = torch.distributions.Normal(0.0, torch.tensor(std)).log_prob(x).sum(1)
    found = read_array(scored, ("value",))
    assert float((found - exact).mean().abs()) < 0.1

    samples = tmp_path / "samples.npz"
    quick = ("--solver", "dpmpp-2m", "--steps", 30)
    run("sample", out, "--n", 2000, *quick, "--out", samples)
    drawn = read_array(samples).double().std(0)
    torch.testing.assert_close(drawn, torch.tensor(std), rtol=0.1, atol=0)


def test_digits_from_training_to_bits_per_dimension(tmp_path: Path) -> None:
    out = tmp_path / "run"
    every = ("--samples-every", 10, "--bits-every", 12)
    run("train", "digits", *QUICK, *every, "--out", out)
    assert {path.name for path in out.iterdir()} == {
        MARKER, "checkpoints", "config.json", "metrics.json", "model.safetensors", "samples",
        "samples.png",
    }  # fmt: skip
    pictures = {path.name for path in (out / "samples").iterdir()}
    assert pictures == {MARKER, "step-00000010.png"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 12
    assert metrics["steps_per_second"] == pytest.approx(12 / metrics["seconds"])
    assert math.isfinite(metrics["last_loss"])
    model = sm.load_model(out / "model.safetensors")
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < metrics["bits_per_dim"]["12"] < 10
    words = ("--n", 3, "--tol", 5, "--out", tmp_path / "bits.json")
    said = run("log-prob", out / "model.safetensors", "digits", *words)
    assert " bits per dimension over 3 samples" in said


def test_the_command_is_the_call(points: Path, tmp_path: Path) -> None:
    """The weights are those that the library gives when it is asked the same."""
    model_options = ("--sde", "cosine", "--prediction", "v", "--seed", 5)
    loss_options = ("--weighting", "simple", "--times", "log-snr")
    run("train", points, *QUICK, *model_options, *loss_options, "--out", tmp_path / "run")
    torch.manual_seed(5)
    x = read_array(points)
    network = sm.nn.ResidualNetwork((2,), width=8, depth=1)
    std = float(f"{x.double().square().mean().sqrt():.3g}")
    model = sm.ScoreModel(network, sm.CosineSDE(data_std=std), "v", event_shape=(2,))
    loss = partial(sm.losses.denoising_score_matching, weighting="simple", times="log-snr")
    wanted = sm.fit(
        model, x, steps=12, batch_size=8, loss=loss, seed=5,
        progress=False,
    )  # fmt: skip
    same = torch.cat([parameter.flatten() for parameter in wanted.model.parameters()])
    assert torch.equal(weights(tmp_path / "run"), same)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", points, *QUICK, "--out")
    run(*words, tmp_path / "whole")

    def ctrl_c(progress: Progress) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(
            sm.training,
            "fit",
            lambda *a, callback, **k: sm.fit(*a, callback=[*callback, ctrl_c], **k),
        )
        said = fail(*words, tmp_path / "stopped", code=130)
    assert said == "Stopped: the same command goes on from step 7."
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    run(*words, tmp_path / "stopped")
    for name in ("model.safetensors", "samples.png"):
        first, second = (tmp_path / out / name for out in ("whole", "stopped"))
        assert first.read_bytes() == second.read_bytes()
    said = fail(*words, tmp_path / "whole", "--batch-size", 4, "--seed", 1)
    assert "(batch_size: 8 there, 4 now; seed: 0 there, 1 now)" in said
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["batch_size"] == 8


def test_the_resolved_configuration_gives_the_same_bytes(points: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    run("train", points, *QUICK, "--objective", "sliced", "--keep", 1, "--out", a)
    written = json.loads((a / "config.json").read_text())
    assert written["command"] == "train"
    assert written["objective"] == "sliced"
    assert written["preconditioning"] == "edm"
    run("train", "--config", a / "config.json", "--out", b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert json.loads((b / "config.json").read_text()) == written | {"out": str(b)}
    run("train", "--config", a / "config.json", "--out", c, "--seed", 1)
    assert not torch.equal(weights(a), weights(c))


def test_overwrite_begins_anew_and_leaves_other_files(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", points, *QUICK, "--out", out)
    before = weights(out)
    run("train", points, *QUICK, "--out", out)  # nothing is left to do
    assert torch.equal(weights(out), before)
    (out / "notes").write_text("mine")
    run("train", points, *QUICK, "--seed", 1, "--overwrite", "--out", out)
    assert not torch.equal(weights(out), before)
    assert (out / "notes").read_text() == "mine"


def test_labels(tmp_path: Path) -> None:
    """A model with classes says so, and is asked for one of them."""
    rng = np.random.default_rng(0)
    data = save(tmp_path / "x.npz", x=rng.integers(0, 4, (30, 1, 4, 4)), label=np.arange(30) % 3)
    out = tmp_path / "run"
    run("train", data, "--levels", 4, "--labels", *QUICK, "--samples-every", 12, "--out", out)
    model = out / "model.safetensors"
    assert sm.load_model(model).network.classes == 3
    quick = ("--n", 2, "--solver", "ddim", "--steps", 2)
    words = ("sample", model, *quick, "--out", tmp_path / "s.npz")
    assert "trained with labels from 0 to 2, none was given" in fail(*words)
    assert "from 0 to 2, got 3" in fail(*words, "--label", 3)
    run(*words, "--label", 2)
    wanted = sm.sample_to_folder(
        sm.load_model(model), 2, tmp_path / "shards", solver="ddim", steps=2, cond={"label": 2},
        progress=False,
    )  # fmt: skip
    assert torch.equal(read_array(tmp_path / "s.npz"), torch.stack(list(wanted)))


def test_other_data(points: Path, tmp_path: Path) -> None:
    """A folder of shards, one of images, and numbers that no picture can show."""
    run("train", points, *QUICK, "--out", tmp_path / "first")
    shards = tmp_path / "shards"
    words = ("--n", 9, "--solver", "ddim", "--steps", 2, "--out", shards)
    run("sample", tmp_path / "first" / "model.safetensors", *words)
    run("train", shards, *QUICK, "--dtype", "float64", "--out", tmp_path / "second")
    assert weights(tmp_path / "second").dtype == torch.float64
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        picture = np.full((4, 4, 3), 100, dtype=np.uint8)
        imsave(tmp_path / "images" / name / "0.png", picture)
    run("train", tmp_path / "images", "--labels", *QUICK, "--out", tmp_path / "third")
    third = sm.load_model(tmp_path / "third" / "model.safetensors")
    assert (third.event_shape, third.network.classes) == ((3, 4, 4), 2)
    five = save(tmp_path / "five.npz", x=np.random.default_rng(0).normal(size=(9, 5)))
    run("train", five, *QUICK, "--out", tmp_path / "fourth")
    assert not (tmp_path / "fourth" / "samples.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digit", "no data set of that name; did you mean 'digits'"),
        ("nowhere.npz", "no file nowhere.npz"),
        ("mnist", "mnist is read from files: give their folder as --root"),
        ("digits --root /tmp", "--root is for mnist, fashion-mnist, cifar10, got digits"),
        ("digits --levels 8", "from 0 to 7 for levels=8"),
        ("two-moons --labels", "no labels to train with"),
        ("two-moons --bits-every 3", "--bits-every: bits per dimension need data with levels"),
        ("two-moons --samples-every 3", "event_shape must be (1, H, W) or (3, H, W)"),
        ("digits --sde vpe", "unknown SDE 'vpe'; did you mean 'vp'"),
        ("digits --network mixin", "unknown network 'mixin'; did you mean 'mixing'"),
        ("two-moons --network mixing", "for vectors use sm.nn.ResidualNetwork"),
        ("digits --objective implict", "unknown objective 'implict'; did you mean 'implicit'"),
        ("digits --weighting simpl", "unknown weighting 'simpl'; did you mean 'simple'"),
        ("digits --times log-norml", "unknown times 'log-norml'; did you mean 'log-normal'"),
        ("digits --prediction noise", "unknown prediction 'noise'"),
        ("digits --objective sliced --weighting output", "is for the objective 'denoising'"),
        ("digits --steps 3 --seconds 2", "give exactly one of steps and seconds"),
        ("digits --ema-decay 2", "ema_decay must lie in [0, 1)"),
        ("digits --device abacus", "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_reported_in_one_line_and_leave_nothing(
    words: str, message: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert message in fail("train", *words.split(), "--out", out)
    assert not out.exists()


def test_files_have_no_part_for_bits_per_dimension(tmp_path: Path) -> None:
    images = save(tmp_path / "images.npz", x=np.zeros((3, 1, 4, 4), dtype=np.uint8))
    words = ("--levels", 4, "--bits-every", 3, "--out", tmp_path / "run")
    assert "--bits-every: the data have no part for testing" in fail("train", images, *words)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_files_and_folders(points: Path, tmp_path: Path) -> None:
    x = read_array(points).numpy()
    x[3] = np.nan
    nan = save(tmp_path / "nan.npz", x=x)
    out = ("--out", tmp_path / "run")
    assert "data holds NaN or infinite values in row 3" in fail("train", nan, *QUICK, *out)
    large = save(tmp_path / "large.npz", x=read_array(points).numpy() * 1000)
    assert "subtract their mean and divide" in fail("train", large, *QUICK, *out)
    whole = save(tmp_path / "whole.npz", x=np.zeros((3, 2), dtype=np.uint8))
    assert "give --levels, 256 for bytes" in fail("train", whole, *QUICK, *out)
    said = fail("train", points, "--labels", *QUICK, *out)
    assert "--labels: " in said
    assert "holds the arrays x, expected label or labels" in said
    short = save(tmp_path / "short.npz", x=x, label=np.zeros(3, dtype=int))
    assert "an array 'label' of as many" in fail("train", short, "--labels", *QUICK, *out)
    assert not (tmp_path / "run").exists()
    assert "is not empty, and no" in fail("train", points, "--out", tmp_path)
    assert "there is a file of that name" in fail("train", points, "--out", points)


def test_a_loss_that_explodes_is_work_that_failed(points: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--learning-rate", 1e30, "--warmup", 0, "--out", tmp_path / "run")
    assert "lower learning_rate" in fail("train", points, *words, code=1)
    assert not (tmp_path / "run").exists()


def test_two_processes_train_one_model(points: Path, tmp_path: Path) -> None:
    """As `accelerate launch` starts them: the same weights, written by the first alone."""
    out = tmp_path / "run"
    words = [*map(str, ("train", points, *QUICK, "--dtype", "float64", "--out"))]
    said = run_two("-m", "sde_models.cli", *words, str(out), "--no-progress")
    assert ["12 steps" in output for output, _ in said] == [True, False]
    run(*words, tmp_path / "alone")
    assert torch.allclose(weights(out), weights(tmp_path / "alone"), rtol=0, atol=1e-9)
