"""Each command through the command line: results, configurations, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from PIL import Image
from typer.testing import CliRunner

import sde_models as sm
from sde_models._utils.owned_folders import MARKER
from sde_models.cli import app
from sde_models.data import read_array

QUICK = "--n 9 --solver ddim --steps 3 --chunk 4"


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def run(*words: object) -> str:
    """What a command says, if it ends well."""
    result = invoke(*words, "--no-progress")
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fail(*words: object) -> str:
    """The one line of a mistake."""
    result = invoke(*words, "--no-progress")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    line = str(result.stderr).splitlines()[-1]
    assert line.startswith("Error: ")
    assert not result.stdout
    return line


def save(path: Path, event_shape: tuple[int, ...]) -> Path:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork(event_shape, width=16, depth=1)
    sde = sm.VPSDE(t_min=1e-3)
    sm.save_model(path, sm.ScoreModel(network, sde, preconditioning="edm"))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "points.safetensors", (2,))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "images.safetensors", (1, 8, 8))


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32))
    return path


def test_sample_writes_what_the_library_draws(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.npz"
    words = ("--n", 7, "--solver", "dpmpp-2m", "--steps", 5, "--chunk", 4, "--seed", 3)
    said = run("sample", model, *words, "--out", out)
    assert said == f"{out}: 7 samples of shape (2,), 5 evaluations for each\n"
    shards = sm.sample_to_folder(
        sm.load_model(model), 7, tmp_path / "shards", solver="dpmpp-2m", steps=5, chunk=4, seed=3,
        progress=False,
    )  # fmt: skip
    assert torch.equal(read_array(out), torch.stack(list(shards)))
    assert {path.name for path in out.parent.iterdir()} == {"x.npz", "x.npz.config.json"}


def test_the_resolved_configuration_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    words = (
        "--n",
        5,
        "--solver",
        "euler-maruyama",
        "--steps",
        4,
        "--eta",
        0.5,
        "--dtype",
        "float64",
    )
    run("sample", model, *words, "--out", a)
    config = tmp_path / "a.npz.config.json"
    written = json.loads(config.read_text())
    assert written == {
        "made_by": "sde-models", "command": "sample", "model": str(model), "out": str(a), "n": 5,
        "denoise": False,
        "solver": "euler-maruyama", "steps": 4, "eta": 0.5, "chunk": 4096, "seed": 0,
        "device": "cpu", "dtype": "float64",
    }  # fmt: skip
    run("sample", "--config", config, "--out", b)
    assert a.read_bytes() == b.read_bytes()
    assert read_array(b).dtype == torch.float64
    assert json.loads((tmp_path / "b.npz.config.json").read_text()) == written | {"out": str(b)}
    run("sample", "--config", config, "--out", c, "--seed", 1)  # what is given here comes first
    assert c.read_bytes() != a.read_bytes()
    before = a.read_bytes()
    run("sample", "--config", config, "--overwrite")
    assert a.read_bytes() == before


def test_a_configuration_in_toml(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "sample.toml"
    config.write_text('n = 3\nsolver = "ddim"\nsteps = 4\nmax-steps = 9\n')
    assert "cannot use max_steps=" in fail(
        "sample", model, "-c", config, "--out", tmp_path / "x.npz"
    )
    config.write_text('n = 3\nsolver = "ddim"\nsteps = 4\n')
    assert ": 3 samples" in run("sample", model, "-c", config, "--out", tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"step": 4}', "'step', which is no option here; did you mean 'steps'"),
        ("a.json", '{"command": "encode"}', "is for 'sde-models encode'"),
        ("a.json", "{", "cannot be read"),
        ("a.toml", "= 3", "cannot be read"),
        ("a.json", "[]", "must hold options by name, got a list"),
        ("a.yaml", "n: 3", "must end in .toml or .json"),
        ("a.json", '{"n": "many"}', "Invalid value for '--n'"),
    ],
)
def test_configurations_that_will_not_do(
    model: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    config = tmp_path / name
    assert message in fail("sample", model, "--config", config, "--out", tmp_path / "x.npz")


def test_a_folder_of_shards_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    words = ("sample", model, *QUICK.split(), "--out", out)
    run(*words)
    wanted = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(wanted) == {
        MARKER, "settings.json", "config.json", *(f"chunk-{i:06d}.safetensors" for i in range(3))
    }  # fmt: skip
    (out / "chunk-000001.safetensors").unlink()
    run(*words)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    assert "other settings" in fail(*words, "--seed", 1)
    run(*words, "--seed", 1, "--overwrite")
    assert (out / "chunk-000000.safetensors").read_bytes() != wanted["chunk-000000.safetensors"]


def test_an_interrupted_file_goes_on(model: Path, tmp_path: Path) -> None:
    """The shards of an unfinished file are next to it."""
    out = tmp_path / "x.npz"
    sm.sample_to_folder(
        sm.load_model(model), 9, tmp_path / "x.npz.parts", solver="ddim", steps=3, chunk=4,
        denoise=False, progress=False,
    )  # fmt: skip
    (tmp_path / "x.npz.parts" / "chunk-000002.safetensors").unlink()
    words = ("sample", model, *QUICK.split(), "--out", out)
    assert "8/9" in invoke(*words).stderr
    assert read_array(out).shape == (9, 2)
    assert not (tmp_path / "x.npz.parts").exists()


@pytest.mark.parametrize("which", ["model", "images"])
def test_pictures(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = tmp_path / "x.png"
    file = request.getfixturevalue(which)
    words = ("--n", 70, "--solver", "ddim", "--steps", 2, "--shape", "2")
    run("sample", file, *(words if which == "model" else words[:-2]), "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_encode_and_decode(model: Path, points: Path, tmp_path: Path) -> None:
    tight = ("--rtol", 1e-6, "--atol", 1e-6)
    z, back = tmp_path / "z", tmp_path / "back.npz"
    assert ": 6 latents" in run("encode", model, points, *tight, "--out", z, "--batch", 4)
    assert ": 6 samples" in run("decode", model, z, *tight, "--out", back)
    torch.testing.assert_close(read_array(back), read_array(points), atol=1e-3, rtol=0)
    run("decode", model, z, *tight, "--n", 2, "--out", tmp_path / "two.npz")
    torch.testing.assert_close(read_array(tmp_path / "two.npz"), read_array(back)[:2])


def test_another_file_is_not_taken_for_the_one_that_was_encoded(
    model: Path, points: Path, tmp_path: Path
) -> None:
    out = tmp_path / "z"
    words = ("encode", model, points, "--rtol", 0.1, "--atol", 0.1, "--out", out)
    run(*words)
    wanted = {path.name: path.read_bytes() for path in out.glob("chunk-*")}
    np.savez(points, x=read_array(points).numpy() + 1)
    assert "other settings (data: tensor float32" in fail(*words)
    assert {path.name: path.read_bytes() for path in out.glob("chunk-*")} == wanted
    run(*words, "--overwrite")
    assert {path.name: path.read_bytes() for path in out.glob("chunk-*")} != wanted
    run(*words)


def test_digits_by_name(images: Path, tmp_path: Path) -> None:
    z, bits = tmp_path / "z.npz", tmp_path / "bits.npz"
    run("encode", images, "digits", "--n", 3, "--solver", "ddim", "--steps", 3, "--out", z)
    assert read_array(z).shape == (3, 1, 8, 8)
    quick = ("--n", 3, "--divergence", "hutchinson", "--rtol", 0.01, "--intervals", 12)
    said = run("log-prob", images, "digits", *quick, "--out", bits)
    assert " bits per dimension over 3 samples, each known to within " in said
    with np.load(bits) as archive:
        assert set(archive) == {"value", "stderr", "solver_error", "quadrature_error"}


def test_a_folder_of_images(tmp_path: Path) -> None:
    model = save(tmp_path / "colour.safetensors", (3, 4, 4))
    (tmp_path / "images" / "class").mkdir(parents=True)
    for index in range(3):
        picture = np.full((4, 4, 3), 100 * index, dtype=np.uint8)
        imsave(tmp_path / "images" / "class" / f"{index}.png", picture)
    z = tmp_path / "z.npz"
    run("encode", model, tmp_path / "images", "-n", 2, "--solver", "ddim", "--steps", 3, "--out", z)
    assert read_array(z).shape == (2, 3, 4, 4)


def test_a_folder_of_16_bits(tmp_path: Path) -> None:
    """Training, latents and bits of 65,536 grey levels, which are known without --levels."""
    (tmp_path / "images" / "class").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 4, 4)).astype(np.uint16)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "images" / "class" / f"{index}.png")
    quick = ("--network", "residual", "--width", 8, "--depth", 1, "--steps", 2, "--batch-size", 4)
    run("train", tmp_path / "images", *quick, "--out", tmp_path / "run")
    assert sm.load_model(tmp_path / "run" / "model.safetensors").event_shape == (1, 4, 4)
    np.save(tmp_path / "images.npy", pixels[:, None])
    for data, words in ((tmp_path / "images", ()), (tmp_path / "images.npy", ("--levels", 65536))):
        out = tmp_path / f"{data.name}.npz"
        run("encode", tmp_path / "run", data, *words, "--rtol", 1e-2, "--out", out)
    from_folder, from_array = (tmp_path / f"{name}.npz" for name in ("images", "images.npy"))
    assert from_folder.read_bytes() == from_array.read_bytes()
    for data, known in ((tmp_path / "images", 65536), ("digits", 17)):
        words = ("--levels", 65537, "--out", tmp_path / "more.npz")
        assert f"has {known} levels" in fail("encode", tmp_path / "run", data, *words)
    said = run("log-prob", tmp_path / "run", tmp_path / "images", "--out", tmp_path / "bits.json")
    assert "bits per dimension over 3 samples" in said


DTYPES = ["uint8", "uint16", ">u2", ">i4", "uint32", "uint64", "int64", "bool", "float16", ">f4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_arrays_of_any_dtype_are_the_same_numbers(
    images: Path, tmp_path: Path, dtype: str, ending: str
) -> None:
    """Latents and bits of levels, or of floats, are those of the usual dtype, to the bit."""
    x = np.random.default_rng(0).integers(0, 2, (2, 1, 8, 8)).astype(dtype)
    levels = () if x.dtype.kind == "f" else ("--levels", 2)
    usual = x.astype(np.float32 if x.dtype.kind == "f" else np.int64)
    steps = (*levels, "--solver", "ddim", "--steps", 2)
    likelihood = (*levels, "--solver", "ode:rk4", "--steps", 3, "--divergence", "hutchinson")
    found = []
    for name, array in (("usual", usual), ("other", x)):
        file = tmp_path / f"{name}{ending}"
        np.save(file, array) if ending == ".npy" else np.savez(file, x=array)
        run("encode", images, file, *steps, "--out", tmp_path / f"z-{name}.npz")
        run("log-prob", images, file, *likelihood, "--out", tmp_path / f"l-{name}.npz")
        found.append([(tmp_path / f"{what}-{name}.npz").read_bytes() for what in "zl"])
    assert found[0] == found[1]


def test_log_prob_in_nats(model: Path, points: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    said = run("log-prob", model, points, "--tol", 0.05, "--out", out)
    found = json.loads(out.read_text())
    wanted = sm.log_prob(sm.load_model(model), read_array(points), tol=0.05)
    assert found["mean"] == pytest.approx(float(wanted.value.mean()), abs=0.05)
    assert found["mean_stderr"] == pytest.approx(float(wanted.value.std()) / 6**0.5, rel=0.1)
    assert 0 < found["sample_error"] <= 0.05
    assert (found["samples"], found["unit"]) == (6, "nats")
    assert f"{found['mean']:.6g} ± {found['mean_stderr']:.2g} nats over 6 samples" in said
    one = run("log-prob", model, points, "--n", 1, "--out", tmp_path / "one.json")
    assert "±" not in one
    assert json.loads((tmp_path / "one.json").read_text())["mean_stderr"] is None


def test_mistakes_are_reported_in_one_line(model: Path, points: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.npz")
    assert "mnist is read from files: give their folder as --root" in fail(
        "log-prob", model, "mnist", *out
    )
    assert "no file nowhere" in fail("sample", "nowhere", *out)
    assert "did you mean 'dpmpp-2m'" in fail("sample", model, "--solver", "dpm-2m", *out)
    assert "cannot use steps=; it chooses" in fail("sample", model, "--steps", 4, *out)
    assert "holds no settings" in fail("sample", _foreign(tmp_path), *out)
    assert "no file nowhere.npz" in fail("encode", model, "nowhere.npz", *out)
    assert "event shape (1, 8, 8)" in fail("encode", model, "digits", *out)
    assert "expected y: name one of these" in fail(
        "encode", model, _two(tmp_path), "--array", "y", *out
    )
    assert "give --levels, 256" in fail("encode", model, _whole_numbers(tmp_path), *out)
    assert "shape (3,), expected (B, *event)" in fail("encode", model, _flat(tmp_path), *out)
    assert "no .npz or .npy file of numbers: write a tensor x by numpy.save" in fail(
        "encode", model, model, *out
    )
    assert "holds no images" in fail("decode", model, tmp_path, *out)
    assert "unknown divergence" in fail("log-prob", model, points, "--divergence", "hutc", *out)
    assert "device 'abacus' cannot be used: give cpu, cuda, mps, or" in fail(
        "sample", model, "--device", "abacus", *out
    )
    assert "--shape must be such as 1,8,8: got 'two'" in fail(
        "sample", model, "--shape", "two", *out
    )
    assert "must have an ending of these: .npz" in fail("sample", model, "--out", "x.txt")
    assert "must have an ending of these: .npz, .json" in fail(
        "log-prob", model, points, "--out", "x.png"
    )
    assert not (tmp_path / "x.npz.parts").exists()
    run("sample", model, *QUICK.split(), "--out", tmp_path / "ours.npz")
    said = fail("sample", model, "--out", tmp_path / "ours.npz")
    assert "exists: give another --out, or --overwrite" in said
    (tmp_path / "x.npz").write_text("mine")
    assert "no x.npz.config.json says that sde-models made it" in fail(
        "sample", model, *out, "--overwrite"
    )
    assert "choose another folder" in fail("sample", model, "--out", tmp_path)
    assert (tmp_path / "x.npz").read_text() == "mine"


def test_mistakes_are_found_before_a_progress_bar_is_shown(
    model: Path, points: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out.npz")
    for words in (
        ("sample", model, "--solver", "dpm-2m"), ("encode", model, points, "--solver", "no"),
        ("decode", model, points, "--array", "x", "--solver", "no"), ("encode", model, "digits"),
        ("log-prob", model, points, "--tol", 0), ("log-prob", model, points, "--solver", "no"),
        ("log-prob", model, "digits"),
    ):  # fmt: skip
        said = invoke(*words, *out).stderr
        assert said.startswith("Error: ")
        assert said.count("\n") == 1


def test_a_picture_of_what_cannot_be_drawn(tmp_path: Path) -> None:
    model = save(tmp_path / "five.safetensors", (5,))
    assert "shape (5,): write an .npz" in fail("sample", model, "--out", tmp_path / "x.png")


def test_work_that_fails_has_another_code(model: Path, tmp_path: Path) -> None:
    result = invoke(
        "sample", model, "--solver", "ode:dopri5", "--max-steps", 1, "--out", tmp_path / "x.npz"
    )
    assert result.exit_code == 1
    assert "max_steps" in result.stderr
    result = invoke("sample", model, "-n", 10**30, "--out", tmp_path / "x.npz")
    assert result.exit_code == 1
    assert "samples take 8e+15 PB in" in result.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = invoke("sample", "nowhere", "--out", tmp_path / "x.npz", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


def test_several_processes_write_shards(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give --out a folder" in fail("sample", model, "--out", tmp_path / "x.npz")


@pytest.mark.parametrize("command", ["encode", "decode", "log-prob", "train"])
def test_an_array_that_is_not_there_is_refused_with_those_that_are(
    command: str, model: Path, tmp_path: Path
) -> None:
    """In every kind of DATA; where there is a single array too."""
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    np.savez(tmp_path / "one.npz", other=x)
    np.savez(tmp_path / "two.npz", x=x, z=x + 1)
    np.save(tmp_path / "bare.npy", x)
    sm.sample_to_folder(
        sm.load_model(model), 6, tmp_path / "shards", solver="ddim", steps=2, progress=False
    )
    (tmp_path / "images" / "class").mkdir(parents=True)
    imsave(tmp_path / "images" / "class" / "0.png", np.zeros((4, 4, 3), dtype=np.uint8))
    out = ("--out", tmp_path / ("out.npz" if command != "train" else "out"))
    words = (command, *(() if command == "train" else (model,)))
    for data, message in {
        "one.npz": "holds the arrays other, expected nosuch",
        "two.npz": "holds the arrays x, z, expected nosuch",
        "bare.npy": "holds one array, which has no name, expected nosuch",
        "shards": "hold x, and nothing named nosuch",
        "images": "images have no names",
    }.items():
        assert message in fail(*words, tmp_path / data, "--array", "nosuch", *out)
    assert "no arrays to choose from" in fail(*words, "two-moons", "--array", "x", *out)
    assert not out[1].exists()


def test_an_array_is_taken_by_its_name(model: Path, tmp_path: Path) -> None:
    rows = {name: np.full((3, 2), i, np.float32) for i, name in enumerate("xyz")}
    np.savez(tmp_path / "data.npz", **rows)
    words = ("--solver", "ddim", "--steps", 3)
    for name, value in rows.items():
        out = tmp_path / f"{name}.npz"
        run("decode", model, tmp_path / "data.npz", "--array", name, *words, "--out", out)
        wanted = sm.decode(sm.load_model(model), torch.from_numpy(value), solver="ddim", steps=3)
        assert torch.equal(read_array(out), wanted.x)
    run("decode", model, tmp_path / "data.npz", *words, "--out", tmp_path / "default.npz")
    assert torch.equal(read_array(tmp_path / "default.npz"), read_array(tmp_path / "z.npz"))
    drawn = sm.sample_to_folder(
        sm.load_model(model), 2, tmp_path / "shards", solver="adams-batch", return_log_prob=True,
        progress=False,
    )  # fmt: skip
    densities = sm.Shards(drawn.path, name="log_prob")
    assert torch.equal(torch.stack(list(densities)), drawn.read(0)["log_prob"])


def test_latents_are_not_taken_for_data_nor_data_for_latents(
    model: Path, points: Path, tmp_path: Path
) -> None:
    quick, out = ("--solver", "ddim", "--steps", 3), tmp_path / "out.npz"
    for place in (tmp_path / "z.npz", tmp_path / "z"):
        run("encode", model, points, *quick, "--out", place)
        for command in (("encode", model), ("log-prob", model), ("train",)):
            said = fail(*command, place, "--out", out.with_suffix(""))
            assert f"{place} holds latents, and data are expected: give --array z" in said
        run("encode", model, place, "--array", "z", *quick, "--out", out, "--overwrite")
    run("sample", model, "--n", 3, *quick, "--out", tmp_path / "x")
    for place in (points, tmp_path / "x"):
        said = fail("decode", model, place, "--out", tmp_path / "no.npz")
        assert f"{place} holds data, and latents are expected: give --array x" in said
    said = fail("decode", model, "two-moons", "--out", tmp_path / "no.npz")
    assert "two-moons holds data, and latents are expected: 'encode' writes latents" in said
    assert not (tmp_path / "no.npz").exists()


def test_labels_of_the_data_that_are_not_used_are_said(tmp_path: Path) -> None:
    network = sm.nn.ResidualNetwork((2,), width=8, depth=1, classes=3)
    model, x = tmp_path / "model.safetensors", np.zeros((4, 2), np.float32)
    sm.save_model(model, sm.ScoreModel(network, sm.VPSDE()))
    np.savez(tmp_path / "labelled.npz", x=x, label=np.arange(4) % 3)
    np.savez(tmp_path / "plain.npz", x=x)
    for name, note in (("labelled", True), ("plain", False)):
        out = ("--label", 0, "--solver", "ddim", "--steps", 2, "--out", tmp_path / f"{name}-z.npz")
        result = invoke("encode", model, tmp_path / f"{name}.npz", *out)
        assert result.exit_code == 0
        assert ("--label 0 is the class of all samples, and the labels" in result.stderr) is note


def _two(folder: Path) -> Path:
    np.savez(folder / "two.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    return folder / "two.npz"


def _whole_numbers(folder: Path) -> Path:
    np.savez(folder / "whole.npz", images=np.zeros((3, 2), dtype=np.uint8))
    return folder / "whole.npz"


def _flat(folder: Path) -> Path:
    np.save(folder / "flat.npy", np.zeros(3))
    return folder / "flat.npy"


def _foreign(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, folder / "foreign.safetensors")
    return folder / "foreign.safetensors"
