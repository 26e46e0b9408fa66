"""Model files: what was saved comes back to the last bit; what is damaged or forged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sde_models as sm
from sde_models._utils.tensor_files import PLACE, TensorFile, unpack
from sde_models.models.model_files import SETTINGS_KEY, find_tensors


def small_model() -> sm.ScoreModel:
    network = sm.nn.ResidualNetwork((2,), width=4, depth=1, frequencies=2)
    return sm.ScoreModel(network, sm.VPSDE(), event_shape=(2,))


def image_model() -> sm.ScoreModel:
    network = sm.nn.MixingNetwork((1, 4, 4), width=8, depth=1)
    return sm.ScoreModel(network, sm.VESDE(), preconditioning="edm", event_shape=(1, 4, 4))


def unet_model() -> sm.ScoreModel:
    pytest.importorskip("diffusers")
    network = sm.nn.UNet((1, 8, 8), "ncsn++", channels=32, multipliers=(1, 2), blocks=1)
    return sm.ScoreModel(network, sm.CosineSDE(), "v", event_shape=(1, 8, 8))


def made(make: Callable[[], sm.ScoreModel] = small_model) -> sm.ScoreModel:
    """A model in which no layer is zero, as the last ones are at first."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def assert_same(got: nn.Module, wanted: nn.Module) -> None:
    tensors, expected = find_tensors(got), find_tensors(wanted)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype, name
        assert torch.equal(tensors[name], value), name


def draw(model: sm.ScoreModel) -> Tensor:
    generator, shape = torch.Generator().manual_seed(0), (3, *(model.event_shape or ()))
    return sm.sample(
        model, shape, solver="ddim", steps=3, generator=generator, progress=False
    ).x  # fmt: skip


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model.float(),
    "float64": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "float16": lambda model: model.half(),
    # Its frequencies are those of bfloat16, which no constructor computes.
    "float64 after bfloat16": lambda model: model.bfloat16().double(),
}


@pytest.mark.parametrize("make", [small_model, image_model, unet_model])
@pytest.mark.parametrize("cast", CASTS)
def test_samples_before_and_after_are_the_same_bits(
    tmp_path: Path, make: Callable[[], sm.ScoreModel], cast: str
) -> None:
    model = made(make)
    CASTS[cast](model)
    sm.save_model(tmp_path / "model", model)
    loaded = sm.load_model(tmp_path / "model")
    assert_same(loaded, model)
    assert torch.equal(draw(loaded), draw(model))


def test_each_part_keeps_its_own_dtype_and_frequencies(tmp_path: Path) -> None:
    model = made().bfloat16()
    model.network.write.float()
    model.network.clock[0].double().frequencies.mul_(3)
    sm.save_model(tmp_path / "model", model)
    loaded = sm.load_model(tmp_path / "model")
    assert_same(loaded, model)
    assert {value.dtype for value in find_tensors(loaded).values()} == {
        torch.bfloat16, torch.float32, torch.float64,
    }  # fmt: skip
    assert not loaded.network.clock[0]._buffers.keys() & loaded.state_dict().keys()


def test_averages_of_a_run_in_any_dtype_are_model_files(tmp_path: Path) -> None:
    model, data = made().double(), torch.randn(16, 2).double()
    result = sm.fit(model, data, steps=3, batch_size=4, out=tmp_path, progress=False)
    loaded = sm.load_model(tmp_path / "step-00000003" / "averaged.safetensors")
    assert_same(loaded, result.model)
    assert torch.equal(draw(loaded), draw(result.model))


def test_tied_layers_are_saved(tmp_path: Path) -> None:
    model = made()
    block = model.network.blocks[0]
    block.outer.weight = block.inner.weight
    sm.save_model(tmp_path / "model", model)
    assert_same(sm.load_model(tmp_path / "model"), model)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: parametrizations.weight_norm(network.read),
        lambda network: network.blocks.append(nn.Linear(2, 2)),
        lambda network: setattr(network, "read", nn.Linear(2, 4, bias=False)),
        lambda network: setattr(network, "read", nn.Linear(3, 4)),
    ],
)
def test_a_network_that_was_changed_is_refused_before_it_is_lost(
    tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    model = made()
    change(model.network)
    with pytest.raises(TypeError, match="cannot rebuild this model, whose layers are not those"):
        sm.save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


# Damage.


def test_every_flipped_bit_is_damage(tmp_path: Path) -> None:
    """A sample of the bits, of the checksum all, and of the rest one in 83: a prime."""
    path, model = tmp_path / "model", made()
    sm.save_model(path, model)
    content = path.read_bytes()
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    bits = {*range(8 * PLACE.start - 64, 8 * PLACE.stop, 7), *range(64), *range(0, header, 41)}
    for bit in sorted(bits | set(range(0, 8 * len(content), 83))):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged.*restore it from a copy"):
            sm.load_model(path)
    path.write_bytes(content)
    assert_same(sm.load_model(path), model)


def test_cut_and_foreign_files_and_folders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    sm.save_model(path, made())
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, PLACE.start, PLACE.stop, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            sm.load_model(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        sm.load_model(path)
    with pytest.raises(ValueError, match=r"is a folder: give the file in it"):
        sm.load_model(tmp_path)


def test_files_of_the_first_format_load_with_a_warning(tmp_path: Path) -> None:
    """They have no checksum, and left buffers out, which follow the dtype of the weights."""
    path, model = tmp_path / "model", made().bfloat16()
    path.write_bytes(save(dict(model.state_dict()), {SETTINGS_KEY: settings_of(model, format=1)}))
    with pytest.warns(UserWarning, match=r"earlier version and has no checksum.*save_model\(path"):
        loaded = sm.load_model(path)
    assert_same(loaded, model)
    assert torch.equal(draw(loaded), draw(model))
    path.write_bytes(save(find_tensors(model), {SETTINGS_KEY: settings_of(model)}))
    with pytest.raises(ValueError, match=r"its checksum is missing.*restore it from a copy"):
        sm.load_model(path)


def test_files_without_the_shape_that_the_network_knows_load(tmp_path: Path) -> None:
    loaded = sm.load_model(forge(tmp_path / "model", settings_of(made(), event_shape=None)))
    assert loaded.event_shape == made().event_shape


# Forged settings, with a checksum that fits.


def settings_of(model: sm.ScoreModel, **changes: Any) -> str:
    settings = json.loads(unpack(packed(model)).metadata[SETTINGS_KEY])
    for name, value in changes.items():
        place, *path = name.split("__")
        inner = settings
        for key in [place, *path][:-1]:
            inner = inner[key]
        inner[[place, *path][-1]] = value
    return json.dumps(settings)


def packed(model: sm.ScoreModel) -> bytes:
    from sde_models.models.model_files import describe_model

    return TensorFile(find_tensors(model), {SETTINGS_KEY: json.dumps(describe_model(model))}).pack()


def forge(path: Path, settings: str) -> Path:
    path.write_bytes(TensorFile(find_tensors(made()), {SETTINGS_KEY: settings}).pack())
    return path


@pytest.mark.parametrize(
    "settings",
    ["[]", "3", "null", '"text"', "{}", "", "{", "[" * 100_000, '{"format": NaN}', '{"format": 2}'],
)
def test_settings_that_are_no_settings_are_refused(tmp_path: Path, settings: str) -> None:
    with pytest.raises(ValueError, match=r"the settings or weights in .* do not fit"):
        sm.load_model(forge(tmp_path / "model", settings))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 3, "format 3 is not known, expected 2 or lower: update"),
        ("format", "2", "format '2' is not known"),
        ("sde", "VPSDE", "do not fit"),
        ("sde__class", "XPSDE", "unknown class 'XPSDE'"),
        ("sde__class", ["VPSDE"], "do not fit"),
        ("sde__arguments", None, "do not fit"),
        ("sde__arguments__beta_max", "20", "do not fit"),
        ("sde__arguments__beta_max", float("nan"), "the settings hold NaN"),
        ("sde__arguments__t_min", float("inf"), "the settings hold Infinity"),
        ("network__class", "VPSDE", "unknown class"),
        ("network__arguments__widht", 4, "unexpected keyword argument 'widht'"),
        ("network__arguments__width", 5, "has shape"),
        ("network__arguments__width", 10**9, "do not fit"),
        ("network__arguments__width", 10**30, "do not fit"),
        ("network__arguments__depth", 2, "differ in network.blocks.1"),
        ("network__arguments__depth", 10**9, "many times the tensors of the file"),
        ("network__arguments__classes", 10**9, "differ in network.label.weight"),
        ("network__arguments__frequencies", 10**9, "has shape"),
        ("network__arguments__event_shape", [10**9, 10**9], "do not fit"),
        ("network__arguments__event_shape", "2", "do not fit"),
        ("prediction", 3, "do not fit"),
        ("preconditioning", {}, "do not fit"),
        ("event_shape", "ab", "event_shape must hold integers of 1 or more, got 'ab'"),
        ("event_shape", [-2], "event_shape must hold integers of 1 or more"),
        ("later", 1, "later is 1 in the settings and 'not known' in the model"),
    ],
)
def test_forged_settings_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    settings = settings_of(made(), **{name: value})
    with pytest.raises(ValueError, match=message):
        sm.load_model(forge(tmp_path / "model", settings))


def test_missing_settings_are_refused(tmp_path: Path) -> None:
    whole = json.loads(settings_of(made()))
    for name in whole:
        settings = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(ValueError, match="do not fit"):
            sm.load_model(forge(tmp_path / "model", json.dumps(settings)))


def test_tensors_that_are_not_those_of_the_settings_are_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model", find_tensors(made())
    for changed in (
        dict(list(tensors.items())[1:]),
        tensors | {"network.more": torch.zeros(1)},
        tensors | {"network.read.bias": torch.zeros(5)},
        {name: value for name, value in tensors.items() if "frequencies" not in name},
    ):
        path.write_bytes(TensorFile(changed, {SETTINGS_KEY: settings_of(made())}).pack())
        with pytest.raises(ValueError, match="do not fit"):
            sm.load_model(path)


def test_dtypes_that_the_format_does_not_know_are_named() -> None:
    with pytest.raises(TypeError, match=r"turn has dtype torch\.complex128, .* use complex64"):
        TensorFile({"turn": torch.zeros(2, dtype=torch.complex128)}, {}).pack()
