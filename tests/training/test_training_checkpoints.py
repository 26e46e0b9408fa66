"""A run that is interrupted in any way goes on to the same weights, bit for bit."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import sde_models as sm
from sde_models._utils.owned_folders import MARKER
from sde_models.losses import LearnedTimes, denoising_score_matching
from sde_models.training import Progress
from sde_models.training.checkpoints import (
    FILES,
    SUMS,
    CheckpointFolder,
    DamagedError,
    _checksums,
)

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def small_model(seed: int = 0, **arguments: Any) -> sm.ScoreModel:
    torch.manual_seed(seed)
    network = sm.nn.ResidualNetwork((2,), width=8, depth=1)
    return sm.ScoreModel(network, sm.VPSDE(), **arguments)


def train(out: Path | None, data: Any = DATA, **changes: Any) -> sm.Fit[Any]:
    arguments = {"steps": 12, "batch_size": 8, "seed": 3, "checkpoint_every": 5, "progress": False}
    model = changes.pop("model", None) or small_model()
    return sm.fit(model, data, out=out, **arguments | changes)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return callback


class Noisy(Dataset[Any]):
    """A dataset whose items are augmented, and which gives a class."""

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        return DATA[index] + 0.1 * torch.randn(2), {"label": index % 3}


def labelled(batch_size: int, generator: torch.Generator | None) -> Any:
    rows = torch.randint(len(DATA), (batch_size,), generator=generator)
    return DATA[rows], {"label": rows % 3}


class Dropped(nn.Module):
    """A network that draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sm.nn.ResidualNetwork((2,), width=8, depth=1, classes=3)

    def forward(self, t: Tensor, x: Tensor, label: Any = 0) -> Tensor:
        return nn.functional.dropout(self.inner(t, x, label=label), 0.5, self.training)


@pytest.mark.parametrize(
    "data", [DATA, Noisy(), labelled], ids=["tensor", "dataset", "batch source"]
)
@pytest.mark.parametrize("stop", [3, 5, 9])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, data: Any, stop: int
) -> None:
    def model() -> sm.ScoreModel:
        torch.manual_seed(0)
        return sm.ScoreModel(Dropped(), sm.VPSDE())

    whole = train(tmp_path / "whole", data, model=model())
    with pytest.raises(Stop):
        train(tmp_path / "cut", data, model=model(), callback=stop_at(stop))
    resumed_model = model()
    torch.manual_seed(99)  # what the process did before must not matter
    resumed = train(tmp_path / "cut", data, model=resumed_model)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(resumed.losses, whole.losses)
    for name, value in CheckpointFolder(tmp_path / "whole").read(12).weights.items():
        assert torch.equal(value, resumed_model.state_dict()[name])


@pytest.mark.parametrize("stop", [3, 9])
def test_what_a_loss_has_learned_is_resumed_bit_for_bit(tmp_path: Path, stop: int) -> None:
    def loss(**settings: float) -> Any:
        return partial(denoising_score_matching, weighting="likelihood",
                       times=LearnedTimes(bins=4, **settings))  # fmt: skip

    first, last = loss(), loss()
    whole = train(tmp_path / "whole", loss=first)
    with pytest.raises(Stop):
        train(tmp_path / "cut", loss=loss(), callback=stop_at(stop))
    resumed = train(tmp_path / "cut", loss=last)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(resumed.losses, whole.losses)
    density = last.keywords["times"].density
    assert torch.equal(density, first.keywords["times"].density)
    assert float(density.std()) > 0.01
    with pytest.raises(ValueError, match=r"loss\.times: .*0\.99.* there, .*0\.5.* now"):
        train(tmp_path / "cut", loss=loss(decay=0.5))


def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, callback=stop_at(1))
    assert torch.equal(weights(first.model), weights(again.model))
    assert again.steps == 12


def test_the_seed_of_the_run_is_taken_where_none_is_given(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", seed=None, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    with pytest.raises(Stop):
        train(tmp_path / "b", seed=None, generator=generator, callback=stop_at(7))
    assert torch.equal(weights(train(tmp_path / "b", seed=None).model), weights(whole.model))


def test_checkpoints_are_safetensors_json_and_plain_tensors(tmp_path: Path) -> None:
    result = train(tmp_path, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        MARKER, "step-00000010", "step-00000012"
    ]  # fmt: skip
    newest = tmp_path / "step-00000012"
    assert {entry.name for entry in newest.iterdir()} == {*FILES, SUMS}
    loaded = sm.load_model(newest / "averaged.safetensors")
    assert torch.equal(weights(loaded), weights(result.model))
    assert json.loads((newest / "settings.json").read_text())["batch_size"] == 8
    state = torch.load(newest / "state.pt", weights_only=True)
    assert torch.equal(state["losses"], result.losses)
    checked = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=newest, check=False)
    assert checked.returncode == 0


class Harm:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, with checksums that fit."""
    (folder / name).write_bytes(content)
    forged = {file: (folder / file).read_bytes() for file in FILES}
    (folder / SUMS).write_bytes(_checksums(forged))


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    train(tmp_path / "run")
    folder = CheckpointFolder(tmp_path / "run")
    harm = {"losses": Harm(tmp_path / "harm")}
    for content in (saved(harm), pickle.dumps(harm, protocol=2)):
        forge(folder.folder(12), "state.pt", content)
        with pytest.raises(DamagedError, match="its checksums fit, its content does not"):
            folder.read(12)
        with pytest.warns(RuntimeWarning, match="before it is used"):
            assert train(tmp_path / "run").steps == 12
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.pt", b""),
        ("state.pt", b"PK garbage"),
        ("state.pt", saved([1, 2])),
        ("settings.json", b"[]x"),
        ("settings.json", b"3"),
        ("settings.json", b"[" * 100_000),
        ("weights.safetensors", b""),
        ("averaged.safetensors", b"\xff" * 64),
    ],
)
def test_forged_checkpoints_with_checksums_that_fit_are_passed_over(
    tmp_path: Path, name: str, content: bytes
) -> None:
    whole = train(tmp_path)
    folder = CheckpointFolder(tmp_path)
    forge(folder.folder(12), name, content)
    with pytest.raises(DamagedError, match="damaged, or was not written by this library"):
        folder.read(12)
    with pytest.warns(RuntimeWarning, match="the checkpoint before it is used"):
        assert torch.equal(weights(train(tmp_path).model), weights(whole.model))


def test_the_format_of_model_files_does_not_affect_a_run(tmp_path: Path) -> None:
    whole = train(tmp_path)
    folder = CheckpointFolder(tmp_path)
    settings = folder.read(12).settings | {"model.format": 1}
    forge(folder.folder(12), "settings.json", json.dumps(settings).encode())
    assert torch.equal(weights(train(tmp_path).model), weights(whole.model))


@pytest.mark.parametrize("state", [{}, {"losses": 3}, {"losses": torch.zeros(2)}])
def test_a_state_without_what_a_run_needs_is_refused(tmp_path: Path, state: Any) -> None:
    train(tmp_path)
    forge(CheckpointFolder(tmp_path).folder(12), "state.pt", saved(state))
    with pytest.raises(ValueError, match=r"newest checkpoint .* was not written by fit.*remove it"):
        train(tmp_path, seed=None)


@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_a_flipped_bit_or_a_cut_file_is_detected_and_the_one_before_used(
    tmp_path: Path, name: str
) -> None:
    whole = train(tmp_path)
    folder = CheckpointFolder(tmp_path)
    path = folder.folder(12) / name
    content = path.read_bytes()
    for place in range(0, len(content), 101):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="damaged"):
            folder.read(12)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match="damaged"):
            folder.read(12)
    with pytest.warns(RuntimeWarning, match="step-00000012 is damaged.*before it is used"):
        again = train(tmp_path)
    assert torch.equal(weights(again.model), weights(whole.model))
    assert folder.read(12).settings["steps"] == 12


def test_a_missing_file_is_detected_and_without_any_whole_checkpoint_nothing_is_started(
    tmp_path: Path,
) -> None:
    train(tmp_path)
    folder = CheckpointFolder(tmp_path)
    for step in folder.steps():
        (folder.folder(step) / "state.pt").unlink()
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(ValueError, match="none of the 3 checkpoints"),
    ):
        train(tmp_path)


def test_another_configuration_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match="another configuration") as refusal:
        train(tmp_path, learning_rate=1e-3, steps=13, seed=4)
    for part in (
        "learning_rate: 0.002 there, 0.001 now", "steps: 12 there, 13 now",
        "seed: 3 there, 4 now", "choose another folder",
    ):  # fmt: skip
        assert part in str(refusal.value)
    assert "batch_size" not in str(refusal.value)
    wider = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=9, depth=1), sm.VESDE())
    with pytest.raises(
        ValueError, match=r"model.network.arguments.width: 8 there, 9 now"
    ) as refusal:
        train(tmp_path, model=wider)
    assert "overwrite=True (--overwrite)" in str(refusal.value)
    assert len(str(refusal.value)) < 700
    with pytest.raises(ValueError, match="data: tensor"):
        train(tmp_path, DATA + 1)
    with pytest.raises(ValueError, match="holds a run and resume=False"):
        train(tmp_path, resume=False)
    train(
        tmp_path, gradient_accumulation_steps=2, checkpoint_every=3, keep=1
    )  # these change no result


class Linear(nn.Module):
    """A network of a user's own, with a number that torch does not know of."""

    def __init__(self, k: float = 0.1) -> None:
        super().__init__()
        self.k, self.weight = k, nn.Parameter(torch.tensor(0.5))

    def forward(self, t: Tensor, x: Tensor, c: Any = None) -> Tensor:
        return self.k * self.weight * x


class Unpacked(Dataset[Tensor]):
    """Rows of a tensor, one by one."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def own(network: nn.Module | None = None, sde: Any = None, **arguments: Any) -> sm.ScoreModel:
    return sm.ScoreModel(network or Linear(), sde or sm.VPSDE(), **arguments)


def levels(last: float) -> Any:
    return partial(denoising_score_matching, times=sm.losses.level_times([1.0, last]))


def weighted(by: float) -> Any:
    return partial(denoising_score_matching, weighting=sm.losses.min_snr(by))


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("difference", "first", "second"),
    [
        ("model.prediction: ", {"model": own}, {"model": lambda: own(prediction="x0")}),
        (
            "model.sde.data_std: 1.0 there, 0.5 now",
            {"model": lambda: own(preconditioning="edm")},
            {"model": lambda: own(sde=sm.VPSDE(data_std=0.5), preconditioning="edm")},
        ),
        (
            "model.network.k: 0.1 there, 0.2 now",
            {"model": own}, {"model": lambda: own(Linear(0.2))},
        ),
        (
            "model.c: ",
            {"model": lambda: own().bind(c={"w": torch.tensor([1.00001])})},
            {"model": lambda: own().bind(c={"w": torch.tensor([1.00002])})},
        ),
        (
            "model.c: ",
            {"model": lambda: own().bind(c=torch.tensor([1.00001]))},
            {"model": lambda: own().bind(c=torch.tensor([1.00002]))},
        ),
        ("loss.times: ", {"loss": levels(2.0)}, {"loss": levels(3.0)}),
        ("loss.weighting: ", {"loss": weighted(1.0)}, {"loss": weighted(9.0)}),
        ("data: ", {"data": Unpacked(DATA)}, {"data": Unpacked(DATA + 1e-6)}),
        (
            "data: ",
            {"data": lambda n, generator: DATA[:n]}, {"data": lambda n, generator: DATA[-n:]},
        ),
    ],
)  # fmt: skip
def test_another_model_loss_or_data_is_refused_by_name(
    tmp_path: Path, difference: str, first: Change, second: Change
) -> None:
    def go(change: Change) -> Tensor:
        given = {"data": DATA, "model": own} | change
        return weights(train(tmp_path, **given | {"model": given["model"]()}).model)

    trained = go(first)
    with pytest.raises(ValueError, match=f"another configuration .*{difference}"):
        go(second)
    assert torch.equal(go(first), trained)


def test_a_run_of_an_earlier_format_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    folder = CheckpointFolder(tmp_path)
    settings = {k: v for k, v in folder.read(12).settings.items() if k != "format"}
    forge(folder.folder(12), "settings.json", json.dumps(settings).encode())
    with pytest.raises(ValueError, match=r"\(format: not given there, 2 now\)"):
        train(tmp_path)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_a_full_disk_is_warned_of_and_earlier_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The disk is full while the ``call``-th file of the checkpoint of step 5 is written."""
    from sde_models.training import checkpoints

    write, calls = checkpoints.write_synced, []

    def fill_up(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 5 + call:
            path.write_bytes(content[: len(content) // 2])
            full()
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_synced", fill_up)
    with pytest.warns(RuntimeWarning, match=r"step 5 could not be written.*No space.*goes on"):
        result = train(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        MARKER, "step-00000000", "step-00000010", "step-00000012",
    ]  # fmt: skip
    assert torch.equal(weights(result.model), weights(train(None).model))


def test_a_folder_that_cannot_be_written_at_the_start_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    steps = []

    def loss(model: Any, x0: Tensor, *, generator: Any) -> Tensor:
        value = denoising_score_matching(model, x0, generator=generator)
        return value * torch.inf if len(steps) == 7 else value

    with pytest.raises(FloatingPointError, match="the loss is inf at step 8"):
        train(tmp_path, loss=loss, callback=lambda progress: steps.append(progress.step))
    step, checkpoint = CheckpointFolder(tmp_path).newest() or (0, None)
    assert step == 5
    assert checkpoint is not None
    assert all(bool(value.isfinite().all()) for value in checkpoint.weights.values())


@pytest.mark.parametrize(
    ("which", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_lets_the_step_finish_and_leaves_a_checkpoint(
    tmp_path: Path, which: signal.Signals, error: type[BaseException]
) -> None:
    before = signal.getsignal(which)

    def callback(progress: Progress) -> None:
        if progress.step == 8:
            os.kill(os.getpid(), which)

    with pytest.raises(error):
        train(tmp_path, callback=callback)
    assert signal.getsignal(which) is before
    assert CheckpointFolder(tmp_path).steps()[-1] == 8
    assert torch.equal(weights(train(tmp_path).model), weights(train(None).model))


def test_tied_weights_and_networks_of_others_are_kept(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    def model() -> sm.ScoreModel:
        torch.manual_seed(0)
        return sm.ScoreModel(Tied(), sm.VPSDE())

    whole = train(None, model=model())
    with pytest.raises(Stop):
        train(tmp_path, model=model(), callback=stop_at(8))
    resumed = train(tmp_path, model=model())
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_run_that_is_killed_twenty_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "killed_runs.py"
    root = str(script.parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path), "20"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}, cwd=root,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] == [True, True, True]
    assert found["steps"] == sorted(found["steps"])
    assert len(found["steps"]) == 20


def test_the_time_of_a_run_counts_on_when_it_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tmp_path, steps=None, seconds=0.5, callback=stop_at(6))
    resumed = train(tmp_path, steps=None, seconds=0.5)
    before = CheckpointFolder(tmp_path).read(resumed.steps).state["seconds"]
    again = train(tmp_path, steps=None, seconds=0.5)
    assert again.seconds >= before
    assert torch.equal(again.losses[: resumed.steps], resumed.losses)
