"""Nothing of the user's is lost, whatever a command is asked and however it ends."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sde_models as sm
from sde_models._utils.folder_locks import LOCK, FolderLock
from sde_models._utils.owned_folders import MARKER, OwnedFolder
from sde_models.cli import app
from sde_models.training.checkpoints import FILES, SUMS

ROOT = Path(__file__).parents[2]
QUICK = ("--solver", "ddim", "--steps", "2", "--chunk", "2", "--n", "4")
TRAIN = (
    "--network",
    "residual",
    "--width",
    "4",
    "--depth",
    "1",
    "--batch-size",
    "4",
    "--steps",
    "3",
)
MIXTURE = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words), "--no-progress"])


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below a folder; where a link leads is not looked at."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data."""
    folder = tmp_path_factory.mktemp("inputs")
    network = sm.nn.ResidualNetwork((2,), width=4, depth=1)
    sm.save_model(
        folder / "model.safetensors", sm.ScoreModel(network, sm.VPSDE(), event_shape=(2,))
    )
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "z.npz", z=x)
    np.savez(folder / "images.npz", x=np.tile(x, 8).reshape(4, 1, 4, 4))
    return folder


def commands(inputs: Path) -> dict[str, tuple[object, ...]]:
    """What each command is asked, without where the result goes."""
    model, data = inputs / "model.safetensors", inputs / "x.npz"
    steps = ("--solver", "ddim", "--steps", 2, "--chunk", 2)
    return {
        "sample": ("sample", model, *QUICK),
        "encode": ("encode", model, data, *steps),
        "decode": ("decode", model, inputs / "z.npz", *steps),
        "log-prob": ("log-prob", model, data, *steps, "--intervals", 12),
        "train": ("train", inputs / "images.npz", *TRAIN, "--samples-every", 2),
        "demo": ("demo", "--quick"),
    }


OUR_NAMES = (
    "settings.json", "config.json", "model.safetensors", "metrics.json", "samples.png",
    "report.html", "chunk-000000.safetensors", "chunk-000001.safetensors",
    "samples/step-00000002.png", "checkpoints/notes", ".chunk-000000.safetensors.ab.tmp",
    *(f"checkpoints/step-0000000{step}/{name}" for step in (0, 3) for name in (*FILES, SUMS)),
    *(f"step-0000000{step}/{name}" for step in (0, 3) for name in (*FILES, SUMS)),
    *(f"x.{kind}.parts/{name}" for kind in ("npz", "png", "json")
      for name in ("settings.json", "chunk-000000.safetensors")),
)  # fmt: skip
FILES_OUT = ("x.npz", "x.png", "x.json")


def fill(folder: Path, *more: str) -> None:
    """Somebody else's files under every name that is written here."""
    for name in (*OUR_NAMES, *more):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": "train", "samples": 4, "chunk": 2, "mine": name}))


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize("mistake", [(), ("--solver", "dmi"), ("--stepz",)], ids=str)
def test_a_foreign_folder_stays_as_it_is(
    inputs: Path, tmp_path: Path, overwrite: tuple[str, ...], mistake: tuple[str, ...]
) -> None:
    """With every name that is ever written there, and every command."""
    folder = tmp_path / "mine"
    fill(folder, *FILES_OUT, *(f"{name}.config.json" for name in FILES_OUT))
    before = hashes(tmp_path)
    for command, words in commands(inputs).items():
        asked = (*words, *mistake, *(overwrite if command != "demo" else ()))
        for out in (".", *(() if command in ("train", "demo") else FILES_OUT)):
            result = invoke(*asked, "--out", folder / out)
            assert result.exit_code == 2, result.output
            assert hashes(tmp_path) == before, (command, out)


def test_a_foreign_folder_is_refused_by_the_library(tmp_path: Path) -> None:
    fill(tmp_path / "mine")
    before = hashes(tmp_path)
    model, x = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE()), torch.randn(4, 2)
    quick: dict[str, Any] = {"progress": False, "overwrite": True}
    for call in (
        lambda out: sm.fit(model, x, steps=2, out=out, **quick),
        lambda out: sm.evaluate(MIXTURE, x, out, **quick),
        lambda out: sm.sample_to_folder(MIXTURE, 4, out, **quick),
        lambda out: sm.encode_to_folder(MIXTURE, x, out, **quick),
        lambda out: sm.decode_to_folder(MIXTURE, x, out, **quick),
        sm.shards.remove_shards,
    ):
        with pytest.raises(FileExistsError, match=r"no \.sde-models\.json in it says"):
            call(tmp_path / "mine")
        assert hashes(tmp_path) == before


def test_a_marker_of_another_kind_or_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sm.sample_to_folder(MIXTURE, 4, out, progress=False)
    before = hashes(out)
    with pytest.raises(FileExistsError, match=r"for shards \(format 1\), and this is for check"):
        sm.fit(sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE()), torch.randn(4, 2),
               steps=2, out=out, progress=False)  # fmt: skip
    assert hashes(out) == before
    for content in ("{}", "[]", "", '{"made_by": "me", "kind": "shards", "format": 1}'):
        (out / MARKER).write_text(content)
        with pytest.raises(FileExistsError, match="is not empty"):
            sm.sample_to_folder(MIXTURE, 4, out, progress=False)


def test_a_folder_of_an_earlier_version_goes_on_once_it_is_marked(tmp_path: Path) -> None:
    whole = sm.sample_to_folder(MIXTURE, 6, tmp_path / "whole", chunk=2, progress=False)
    (whole.path / "chunk-000001.safetensors").unlink()
    (whole.path / MARKER).unlink()
    assert len(sm.Shards(whole.path)) == 6  # it can be read
    with pytest.raises(FileExistsError, match="is not empty") as caught:
        sm.sample_to_folder(MIXTURE, 6, whole.path, chunk=2, progress=False)
    said = str(caught.value)
    (whole.path / MARKER).write_text(said[said.index("{") : said.index("}") + 1])
    again = sm.sample_to_folder(MIXTURE, 6, whole.path, chunk=2, progress=False)
    assert again.resumed == 4


# Folders that are ours, with something of the user's in them.


def add_extras(out: Path, elsewhere: Path) -> None:
    """The user's files in a folder of ours, and links that lead out of it."""
    elsewhere.mkdir()
    fill(elsewhere)
    (out / "notes.txt").write_text("mine")
    (out / "report").mkdir()
    (out / "report" / "model.safetensors").write_text("mine")
    (out / "elsewhere").symlink_to(elsewhere)
    for name in ("chunk-000009.safetensors.txt", "step-9", "my config.json"):
        (out / name).write_text("mine")


@pytest.mark.parametrize("command", ["sample", "encode", "decode", "log-prob", "train"])
def test_overwriting_keeps_what_the_user_has_added(
    command: str, inputs: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "out", commands(inputs)[command]
    other = ("--steps", 4) if command == "decode" else ("--seed", 1)
    assert invoke(*words, "--out", out).exit_code == 0
    add_extras(out, tmp_path / "elsewhere")
    if command == "train":
        (out / "checkpoints" / "step-00000003" / "notes.txt").write_text("mine")
        (out / "samples" / "notes.txt").write_text("mine")
    before = hashes(tmp_path)
    mine = {name: value for name, value in before.items() if is_extra(name)}
    assert len(mine) > 20
    for mistake in mistakes(command):
        assert invoke(*words, *mistake, "--overwrite", "--out", out).exit_code in (1, 2)
        assert hashes(tmp_path) == before, mistake  # what is ours is there too
    assert invoke(*words, *other, "--overwrite", "--out", out).exit_code == 0
    after = hashes(tmp_path)
    assert {name: value for name, value in after.items() if name in mine} == {
        name: value for name, value in mine.items() if "step-00000003/notes" not in name
    }
    kept = [name for name in after if name.endswith("/notes.txt") and "kept" in name]
    assert len(kept) == (command == "train")
    changed = {name for name in before if before[name] != after.get(name)} - {*mine}
    assert changed


def is_extra(name: str) -> bool:
    extras = ("notes.txt", "report/", "elsewhere", "009.safetensors.txt", "step-9", "my config")
    return any(part in name for part in extras)


def mistakes(command: object) -> list[tuple[object, ...]]:
    """Options and inputs that will not do, each found at another place."""
    if command == "train":
        return [
            ("--ema-decay", 2), ("--objective", "no"), ("--array", "no"), ("--device", "no"),
            ("--network", "mixin"), ("--labels",),
            ("--batch-size", 1, "--gradient-accumulation-steps", 2),
        ]  # fmt: skip
    here: list[tuple[object, ...]] = [
        ("--solver", "dmi"), ("--solver", "dopri5", "--steps", 3), ("--device", "no"),
        ("--rtol", 0.1), ("--grid", "no"), ("--label", 3),
    ]  # fmt: skip
    return here + ([("--shape", "3")] if command == "sample" else [("--array", "no")])


def test_a_file_of_ours_is_replaced_when_that_is_asked_and_others_never(
    inputs: Path, tmp_path: Path
) -> None:
    words, out = commands(inputs)["sample"], tmp_path / "x.npz"
    assert invoke(*words, "--out", out).exit_code == 0
    (tmp_path / "x.npz.parts").mkdir()
    (tmp_path / "x.npz.parts" / "settings.json").write_text("mine")
    before = hashes(tmp_path)
    assert invoke(*words, "--out", out, "--seed", 1).exit_code == 2
    said = invoke(*words, "--out", out, "--seed", 1, "--overwrite")
    assert said.exit_code == 2
    assert "x.npz.parts is not empty" in said.stderr
    assert hashes(tmp_path) == before
    shutil.rmtree(tmp_path / "x.npz.parts")
    assert invoke(*words, "--out", out, "--seed", 1, "--overwrite", "--solver", "no").exit_code == 2
    assert hashes(tmp_path)["x.npz"] == before["x.npz"]
    assert invoke(*words, "--out", out, "--seed", 1, "--overwrite").exit_code == 0
    assert hashes(tmp_path)["x.npz"] != before["x.npz"]
    # A copy under another name is the user's.
    for name in ("x.npz", "x.npz.config.json"):
        (tmp_path / name).rename(tmp_path / name.replace("x", "y"))
    before = hashes(tmp_path)
    assert invoke(*words, "--out", tmp_path / "y.npz", "--overwrite").exit_code == 2
    (tmp_path / "y.npz").unlink()
    said = invoke(*words, "--out", tmp_path / "y.npz", "--overwrite")
    assert "y.npz.config.json exists, and was not written here" in said.stderr
    assert hashes(tmp_path)["y.npz.config.json"] == before["y.npz.config.json"]


@pytest.mark.parametrize("command", ["encode", "decode", "log-prob"])
def test_what_is_read_is_not_written_over(command: str, inputs: Path, tmp_path: Path) -> None:
    words = commands(inputs)
    for out in ("shards", "x.npz"):
        assert invoke(*words["sample"], "--out", tmp_path / out).exit_code == 0
        before = hashes(tmp_path)
        model, *options = (words[command][1], *words[command][3:])
        here = (tmp_path / "." / out, "--out", tmp_path / out, "--overwrite")
        result = invoke(command, model, here[0], *options, *here[1:])
        assert (result.exit_code, hashes(tmp_path)) == (2, before)
        assert "is the data that are read" in result.stderr
    shards = sm.Shards(tmp_path / "shards")
    for call in (sm.encode_to_folder, sm.decode_to_folder, sm.evaluate):
        with pytest.raises(ValueError, match="the shards that are read"):
            call(MIXTURE, shards, tmp_path / "shards", overwrite=True, progress=False)
    assert hashes(tmp_path) == before


def test_names_that_the_user_has_taken_in_a_folder_of_ours(inputs: Path, tmp_path: Path) -> None:
    """What the library has made knows no config.json; an unfinished run no model."""
    out = tmp_path / "shards"
    sm.sample_to_folder(
        sm.load_model(inputs / "model.safetensors"), 4, out, solver="ddim", steps=2, chunk=2,
        denoise=False, progress=False,
    )  # fmt: skip
    (out / "config.json").write_text("mine")
    words = commands(inputs)
    for more in ((), ("--overwrite",)):
        said = invoke(*words["sample"], "--out", out, *more)
        assert "config.json exists, and was not written here" in said.stderr
        assert (out / "config.json").read_text() == "mine"
    with OwnedFolder(tmp_path / "run", "a training run"):
        pass
    for name in ("model.safetensors", "metrics.json", "samples.png", "config.json"):
        (tmp_path / "run" / name).write_text("mine")
        said = invoke(*words["train"], "--out", tmp_path / "run", "--overwrite")
        assert f"{name} exists, and was not written here" in said.stderr
        assert (tmp_path / "run" / name).read_text() == "mine"
        (tmp_path / "run" / name).unlink()


def test_a_command_that_comes_to_nothing_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asked = commands(inputs)
    del asked["demo"]
    asked["train without pictures"] = asked["train"][:-2]
    for words in asked.values():
        for mistake in mistakes(words[0]):
            for out in ("empty", "new/folder"):
                assert invoke(*words, *mistake, "--out", tmp_path / out).exit_code in (1, 2)
        assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_checkpoints_lead_nowhere_else(tmp_path: Path) -> None:
    """A link in the place of a checkpoint is kept, and what it leads to."""
    model, x = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE()), torch.randn(4, 2)
    quick: dict[str, Any] = {"steps": 3, "batch_size": 4, "progress": False, "seed": 0}
    sm.fit(model, x, out=tmp_path / "run", **quick)
    (tmp_path / "run" / "step-00000003").rename(tmp_path / "moved")
    (tmp_path / "run" / "step-00000003").symlink_to(tmp_path / "moved")
    before = hashes(tmp_path / "moved")
    sm.fit(model, x, out=tmp_path / "run", overwrite=True, **quick | {"seed": 1})
    assert hashes(tmp_path / "moved") == before
    (kept,) = (tmp_path / "run").glob("kept*")
    assert kept.is_symlink()


# Disks that are full.


@pytest.mark.parametrize("limit", [0, 150, 1000, 2500])
@pytest.mark.parametrize("out", ["shards", "x.npz"])
def test_a_full_disk_ends_with_1_and_loses_nothing(
    inputs: Path, tmp_path: Path, limit: int, out: str
) -> None:
    """The disk takes so many bytes of a file and no more: the last are enough for the shards."""
    many = ("--n", 400, "--chunk", 200)
    words = (*commands(inputs)["sample"], *many, "--out", tmp_path / out)
    assert invoke(*words).exit_code == 0
    (tmp_path / "notes.txt").write_text("mine")
    if out == "shards":
        (tmp_path / out / "notes.txt").write_text("mine")
    before = hashes(tmp_path)
    with file_limit(limit):
        result = invoke(*words, "--overwrite", "--seed", 1)
    after = hashes(tmp_path)
    if limit < 2500 or out == "x.npz":
        assert result.exit_code == 1, result.output
        assert "File too large" in result.stderr
    assert all(after[name] == before[name] for name in before if "notes" in name)
    if out == "x.npz":
        assert after["x.npz"] == before["x.npz"]
    assert invoke(*words, "--overwrite", "--seed", 1).exit_code == 0


class file_limit:
    """No file grows beyond some bytes inside the block."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


# Locks.


def start(source: str, *words: object) -> subprocess.Popen[str]:
    """A program that says when it holds what it should."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def working(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains in one folder and samples into another."""
    process = start(
        """
        import sys, time
        from pathlib import Path
        import torch
        import sde_models as sm

        out = Path(sys.argv[1])
        mixture = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        torch.manual_seed(0)
        model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE())

        def wait(step):
            print("ready", flush=True)
            time.sleep(100)

        def draw(progress):
            sm.sample_to_folder(
                mixture, 8, out / "shards", solver="ddim", steps=2, chunk=4, progress=False,
                callback=wait,
            )

        sm.fit(model, torch.zeros(4, 2), steps=3, batch_size=4, seed=0, out=out / "run",
               progress=False, callback=draw)
        """,
        tmp_path,
    )
    with process:
        yield process
        process.kill()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    working: subprocess.Popen[str], inputs: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE())

    def train(**more: Any) -> sm.Fit[Any]:
        return sm.fit(
            model, torch.zeros(4, 2), steps=3, batch_size=4, seed=0, out=tmp_path / "run",
            progress=False, **more,
        )  # fmt: skip

    def draw(**more: Any) -> sm.Shards:
        return sm.sample_to_folder(
            MIXTURE, 8, tmp_path / "shards", solver="ddim", steps=2, chunk=4, progress=False, **more
        )

    before = hashes(tmp_path)
    for act, name in ((train, "run"), (draw, "shards")):
        for overwrite in (False, True):
            said = rf"process {working.pid} on .* is working in {tmp_path / name}"
            with pytest.raises(BlockingIOError, match=said):
                act(overwrite=overwrite)
    words = (*commands(inputs)["sample"], "--out", tmp_path / "shards", "--overwrite")
    result = invoke(*words)
    assert (result.exit_code, hashes(tmp_path)) == (1, before)
    assert f"process {working.pid} on" in result.stderr
    working.send_signal(signal.SIGKILL)
    working.wait()
    assert (tmp_path / "run" / LOCK).exists()  # the file stays, the lock does not
    assert train().steps == 3
    assert len(draw()) == 8
    assert not list(tmp_path.rglob(LOCK))


def test_two_pieces_of_work_in_one_process(tmp_path: Path) -> None:
    """A run inside a callback of another, in the same folder."""
    model, x = sm.ScoreModel(sm.nn.ResidualNetwork((2,), 4, 1), sm.VPSDE()), torch.randn(4, 2)
    quick: dict[str, Any] = {"steps": 2, "batch_size": 4, "progress": False, "out": tmp_path}

    def again(progress: Any) -> None:
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on .* is working in"):
            sm.fit(model, x, **quick)

    sm.fit(model, x, callback=again, **quick)
    sm.fit(model, x, **quick)


def test_a_fork_that_outlives_its_killed_parent_holds_no_lock(tmp_path: Path) -> None:
    """As workers of a DataLoader do for some seconds."""
    process = start(
        """
        import os, sys, time
        from sde_models._utils.folder_locks import FolderLock

        lock = FolderLock(sys.argv[1])
        lock.acquire()
        if os.fork() == 0:
            lock.release()  # which is nothing to a fork
            print("ready", flush=True)  # not before it has run, and let go of what it inherited
            time.sleep(100)
            os._exit(0)
        time.sleep(100)
        """,
        tmp_path,
    )
    with process:
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on"):
            FolderLock(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        os.waitpid(process.pid, 0)
        lock = FolderLock(tmp_path)
        lock.acquire()
        lock.release()


def test_a_kill_before_the_marker_is_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".{MARKER}.{'0' * 32}.tmp").write_text("{")
    (tmp_path / LOCK).write_text("")
    assert len(sm.sample_to_folder(MIXTURE, 4, tmp_path, progress=False)) == 4


def test_results_that_are_whole_can_be_read_again_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock cannot be taken there, and is not needed."""
    quick: dict[str, Any] = {"solver": "ddim", "steps": 2, "progress": False}
    sm.sample_to_folder(MIXTURE, 4, tmp_path, **quick)
    open_ = os.open

    def read_only(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied")
        return open_(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", read_only)
    assert sm.sample_to_folder(MIXTURE, 4, tmp_path, **quick).resumed == 4


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(RuntimeWarning, match="has no locks .Function not implemented"):
        assert len(sm.sample_to_folder(MIXTURE, 4, tmp_path, progress=False)) == 4
