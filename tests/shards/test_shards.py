"""Samples by the million: the functions' own numbers, shard by shard, whatever comes between."""

from __future__ import annotations

import errno
import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sde_models as sm
from sde_models._utils.owned_folders import MARKER
from sde_models._utils.seeds import generator_at
from sde_models.shards import remove_shards
from sde_models.shards.folder import Shard
from sde_models.shards.npz import write_npz

MODEL = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5).score_model(sm.VPSDE())
QUICK: dict[str, Any] = {"solver": "euler-maruyama", "steps": 6}


def draw(out: Path, n: int = 11, model: Any = MODEL, **arguments: Any) -> sm.Shards:
    return sm.sample_to_folder(
        model, n, out, **(QUICK | {"chunk": 4, "progress": False} | arguments)
    )


def everything(shards: sm.Shards, name: str) -> Tensor:
    return torch.cat([shard[name] for shard in shards.batches()])


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> sm.Shards:
    """All samples, in one go."""
    return draw(tmp_path_factory.mktemp("whole") / "out")


def test_the_samples_are_those_of_the_function(whole: sm.Shards) -> None:
    alone = [
        sm.sample(MODEL, (last - first, 2), generator=generator_at(0, first), **QUICK)
        for first, last in ((0, 4), (4, 8), (8, 11))
    ]
    assert torch.equal(everything(whole, "x"), torch.cat([sample.x for sample in alone]))
    assert whole.cost == sm.Cost(nfe=6.0, calls=18)
    assert whole.resumed == 0


class Breaks(nn.Module):
    """A network that some accident is bound to, at its n-th call."""

    described_apart = frozenset({"at", "error", "calls"})

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.at, self.error, self.calls = at, error, 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        if self.error is not None and self.calls == self.at:
            raise self.error
        return self.scale * x


def breaking(at: int | None = None, error: BaseException | None = None) -> sm.ScoreModel:
    return sm.ScoreModel(Breaks(at, error), sm.VPSDE(), event_shape=(2,))


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "whole", model=breaking())
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "out", model=breaking(9, KeyboardInterrupt()))
    assert set(contents(tmp_path / "out")) == {MARKER, "settings.json", "chunk-000000.safetensors"}
    model = breaking()
    assert draw(tmp_path / "out", model=model).resumed == 4
    assert model.network.calls == 12
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert draw(tmp_path / "out", model=breaking(1, AssertionError())).resumed == 11


def test_a_damaged_shard_is_drawn_again(tmp_path: Path, whole: sm.Shards) -> None:
    draw(tmp_path)
    damaged = tmp_path / "chunk-000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(OSError, match=r"chunk-000001.* cannot be read .* repeat the call"):
        list(sm.Shards(tmp_path).batches())
    with pytest.warns(RuntimeWarning, match=r"chunk-000001.* is damaged .*samples 4 to 7 are done"):
        assert draw(tmp_path).resumed == 7
    assert contents(tmp_path) == contents(whole.path)


def test_where_memory_runs_out_parts_are_halved(tmp_path: Path) -> None:
    shortage = torch.OutOfMemoryError("CUDA out of memory")
    got = draw(tmp_path / "short", n=8, model=breaking(1, shortage), chunk=8)
    wanted = [
        sm.sample(breaking(), (4, 2), generator=generator_at(0, first), **QUICK).x
        for first in (0, 4)
    ]
    assert torch.equal(got.read(0)["x"], torch.cat(wanted).detach())
    with pytest.raises(torch.OutOfMemoryError, match=r"sample 0 alone .*lower precision"):
        draw(tmp_path / "none", n=1, model=breaking(1, shortage))


def test_the_costs_of_older_shards_are_read(tmp_path: Path) -> None:
    """They counted batches as nfe and vjps, and samples as rows and vjp_rows."""
    shards = draw(tmp_path, n=4)
    older: Any = SimpleNamespace(nfe=6, rows=24, vjps=2, vjp_rows=8)
    shards._folder.write(0, Shard(shards.read(0), older))
    assert sm.Shards(tmp_path).cost == sm.Cost(nfe=6.0, vjps=2.0, calls=6)
    assert len(next(sm.Shards(tmp_path).batches())["x"]) == 4


class Share:
    """One of two processes, with the interface of accelerate."""

    device = torch.device("cpu")
    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index = rank

    def unwrap_model(self, model: Any) -> Any:
        return model

    def wait_for_everyone(self) -> None:
        pass

    def reduce(self, number: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return number


def test_processes_share_the_shards(tmp_path: Path, whole: sm.Shards) -> None:
    share: Any = Share(1)
    with pytest.raises(FileNotFoundError, match="process 1 does not find"):
        draw(tmp_path, accelerator=share)
    share = Share(0)
    draw(tmp_path, accelerator=share)
    assert set(contents(tmp_path)) == {
        MARKER, "settings.json", "chunk-000000.safetensors", "chunk-000002.safetensors"
    }  # fmt: skip
    share = Share(1)
    draw(tmp_path, accelerator=share)
    assert contents(tmp_path) == contents(whole.path)


def test_densities_go_with_the_samples(tmp_path: Path) -> None:
    got = draw(tmp_path, solver="adams-batch", steps=None, return_log_prob=True)
    x, value = everything(got, "x"), everything(got, "log_prob")
    wanted = sm.log_prob(MODEL, x.double(), tol=0.01)
    assert (value - wanted.value).abs().max() < 0.05
    assert everything(got, "log_prob_error").shape == (11,)


class Shifted(nn.Module):
    """A network that takes conditioning."""

    def forward(self, t: Tensor, x: Tensor, shift: Tensor) -> Tensor:
        return x - shift[:, None]


def test_conditioning_follows_its_samples(tmp_path: Path) -> None:
    model = sm.ScoreModel(Shifted(), sm.VPSDE(), event_shape=(2,))
    shift = torch.linspace(-1, 1, 11)
    quick: dict[str, Any] = {"solver": "ddim", "steps": 3}
    got = draw(tmp_path / "x", model=model, cond={"shift": shift}, **quick)
    for first, last in ((0, 4), (4, 8), (8, 11)):
        wanted = sm.sample(
            model, (last - first, 2), generator=generator_at(0, first),
            cond={"shift": shift[first:last]}, **quick,
        )  # fmt: skip
        assert torch.equal(got[first], wanted.x[0])
    further: dict[str, Any] = {"cond": {"shift": shift}, "chunk": 3, "progress": False, **quick}
    z = sm.encode_to_folder(model, got, tmp_path / "z", **further)
    one = sm.encode(model, everything(got, "x"), cond={"shift": shift}, **quick)
    torch.testing.assert_close(everything(z, "z"), one.z)
    with pytest.raises(ValueError, match=r"cond\['shift'\] has shape \(3,\) for 11 samples"):
        draw(tmp_path / "short", model=model, cond={"shift": shift[:3]}, **quick)


def test_there_and_back_through_shards(tmp_path: Path, whole: sm.Shards) -> None:
    tight: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "chunk": 5, "progress": False}
    z = sm.encode_to_folder(MODEL, whole, tmp_path / "z", **tight)
    back = sm.decode_to_folder(MODEL, z, tmp_path / "x", **tight)
    assert (z.name, back.name, len(back)) == ("z", "x", 11)
    torch.testing.assert_close(everything(back, "x"), everything(whole, "x"), atol=1e-4, rtol=0)
    assert sm.decode_to_folder(MODEL, z, tmp_path / "x", **tight).resumed == 11
    found = sm.evaluate(MODEL, whole, tmp_path / "l", divergence="exact", progress=False)
    read = sm.Shards(tmp_path / "l")
    assert read.name == "value"
    assert torch.equal(everything(read, "value"), found.value)


def test_levels_are_dequantised(tmp_path: Path) -> None:
    images = torch.randint(0, 16, (5, 2), dtype=torch.uint8)
    quick: dict[str, Any] = {"solver": "ddim", "steps": 3}
    got = sm.encode_to_folder(
        MODEL, images, tmp_path, levels=16, chunk=3, progress=False, **quick
    )  # fmt: skip
    for first, last in ((0, 3), (3, 5)):
        x = sm.data.dequantize(images[first:last], 16, generator=generator_at(0, first))
        assert torch.equal(got.read(first // 3)["z"], sm.encode(MODEL, x, **quick).z)


# The shards that are there.


def test_shards_are_a_dataset(whole: sm.Shards) -> None:
    x = everything(whole, "x")
    again = sm.Shards(whole.path, dtype=torch.float64)
    assert len(again) == 11
    assert torch.equal(torch.stack(list(again)), x.double())  # ends by IndexError
    assert torch.equal(again[-1], x[-1].double())
    loader = torch.utils.data.DataLoader(again, batch_size=6)
    assert [len(batch) for batch in loader] == [6, 5]


def test_gathering_holds_one_shard_at_a_time(tmp_path: Path, whole: sm.Shards) -> None:
    whole.save_npz(tmp_path / "a.npz")
    whole.save_npz(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert np.array_equal(archive["x"], everything(whole, "x").numpy())
    alive: list[weakref.ref[np.ndarray]] = []

    def pieces() -> Iterator[np.ndarray]:
        for number in range(5):
            gc.collect()
            assert sum(piece() is not None for piece in alive) <= 1
            piece = np.full((2, 3), number)
            alive.append(weakref.ref(piece))
            yield piece

    write_npz(tmp_path / "c.npz", {"x": pieces()}, 10)
    with np.load(tmp_path / "c.npz") as archive:
        assert archive["x"].shape == (10, 3)


def test_a_gathering_that_fails_leaves_nothing(tmp_path: Path) -> None:
    shards = draw(tmp_path / "shards")
    (tmp_path / "shards" / "chunk-000002.safetensors").unlink()
    with pytest.raises(OSError, match="chunk-000002"):
        shards.save_npz(tmp_path / "x.npz")
    with pytest.raises(OSError, match="chunk-000002"):
        _ = shards.cost
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_what_holds_no_shards(tmp_path: Path) -> None:
    for act in (sm.Shards, remove_shards):
        with pytest.raises(FileNotFoundError, match=r"no shards in .*settings.json"):
            act(tmp_path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ValueError, match="is damaged or of something else"):
            sm.Shards(tmp_path)


def test_shards_are_removed_and_nothing_else(tmp_path: Path) -> None:
    draw(tmp_path / "a")
    remove_shards(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    draw(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    remove_shards(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"generator": torch.Generator()}, TypeError, "sampling .*use seed="),
        ({"path": True}, TypeError, "shards hold no paths"),
        ({"dtype": "float64"}, TypeError, "dtype must be a floating dtype .*, got 'float64'"),
        ({"solver": None}, TypeError, "a name or a solver, got None"),
        ({"n": 0}, ValueError, "n must be an integer of 1 or more"),
        ({"chunk": 0}, ValueError, "chunk must be an integer of 1 or more"),
        ({"model": sm.ScoreModel(Shifted(), sm.VPSDE())}, ValueError, "give event_shape="),
    ],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        draw(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    draw(tmp_path)
    with pytest.raises(ValueError, match=r"steps: 6 there, 7 now; .*seed: 0 there, 1 now"):
        draw(tmp_path, seed=1, steps=7)
    with pytest.raises(ValueError, match="argument solver: 'euler-maruyama' there, 'ddim' now"):
        draw(tmp_path, solver="ddim")


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    """Let the disk have so many bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free))


def test_more_samples_than_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two numbers of four bytes each: 8 TB."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(total=9 * 10**12, free=5 * 10**12)
    )
    message = r"results of 1000000000000 samples take 8 TB in .*out, where 5 TB are free"
    with pytest.raises(OSError, match=message) as caught:
        draw(tmp_path / "out", n=10**12)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    draw(tmp_path / "out", n=11)
    disk(monkeypatch, 100, 16)
    (tmp_path / "out" / "chunk-000001.safetensors").unlink()
    with pytest.raises(OSError, match=r"take 24 bytes in .*, where 16 bytes are free"):
        draw(tmp_path / "out", n=11)
    disk(monkeypatch, 100, 24)
    assert draw(tmp_path / "out", n=11).resumed == 7  # what is there takes no room again


def test_the_room_for_samples_is_that_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network in half precision has a state in single precision."""
    disk(monkeypatch, 100, 0)
    half, images = breaking().bfloat16(), torch.zeros(11, 2, dtype=torch.uint8)
    calls: list[tuple[int, Any]] = [
        (88, lambda: draw(tmp_path, model=half)),
        (176, lambda: draw(tmp_path, dtype=torch.float64)),
        (88, lambda: sm.encode_to_folder(MODEL, images, tmp_path, levels=16, progress=False)),
        (176, lambda: sm.encode_to_folder(
            breaking().double(), images, tmp_path, levels=16, progress=False
        )),
        (176, lambda: sm.decode_to_folder(MODEL, images.double(), tmp_path, progress=False)),
    ]  # fmt: skip
    for size, call in calls:
        with pytest.raises(OSError, match=f"11 samples take {size} bytes in"):
            call()


def test_none_is_no_setting_of_a_folder(tmp_path: Path) -> None:
    """Options that are None have their defaults, as in the functions for one batch."""
    adaptive = QUICK | {"solver": "rk-batch", "steps": None, "rtol": 0.1}
    assert draw(tmp_path / "x", **adaptive).resumed == 0
    left_out: dict[str, Any] = {k: v for k, v in adaptive.items() if k not in ("steps", "solver")}
    shards = sm.sample_to_folder(MODEL, 11, tmp_path / "x", chunk=4, progress=False, **left_out)
    assert shards.resumed == 11
    for given in ({"solver": None, "transform": None}, {}):
        found = sm.evaluate(MODEL, shards, tmp_path / "l", progress=False, **given)
    assert found.resumed == 11


class Unread(torch.utils.data.Dataset[Any]):
    """Items that must not be read."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read before the arguments were checked")


@pytest.mark.parametrize("function", [sm.encode_to_folder, sm.decode_to_folder, sm.evaluate])
def test_arguments_are_checked_before_data_are_read(tmp_path: Path, function: Any) -> None:
    with pytest.raises(TypeError, match="did you mean rtol="):
        function(MODEL, Unread(), tmp_path, progress=False, rtoll=0.1)
    with pytest.raises(ValueError, match="chunk must be"):
        function(MODEL, Unread(), tmp_path, progress=False, chunk=0)
    if function is not sm.evaluate:
        with pytest.raises(ValueError, match="did you mean 'rk-batch'"):
            function(MODEL, Unread(), tmp_path, progress=False, solver="rkbatch")


@pytest.mark.parametrize("n", [10**12, 10**17])
def test_any_number_of_shards_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    """Begun, stopped and gone on with; a list of all shards would take terabytes."""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(total=10**20, free=10**20)
    )
    for calls in (13, 19):  # 6 for a shard
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path, n=n, model=breaking(calls, KeyboardInterrupt()), progress=True)
    assert len(list(tmp_path.glob("chunk-*"))) == 5
    said = capsys.readouterr().err
    assert f"sampling, {8 * n / 1e12:g} TB: " in said or "PB: " in said
    assert f"8/{n}" in said
    shards = sm.Shards(tmp_path)
    assert len(shards) == n
    assert torch.equal(shards[19], shards.read(4)["x"][3])
    with pytest.raises(OSError, match=r"chunk-.* cannot be read"):
        shards[n - 1]
    wanted = draw(tmp_path / "few", n=20, model=breaking())
    assert torch.equal(wanted[19], shards[19])
