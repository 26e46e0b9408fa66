"""A whole dataset: the functions' own numbers, whatever interrupts, shares or shortens the work."""

from __future__ import annotations

import errno
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from support.two_processes import run_two
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import sde_models as sm
from sde_models._utils.owned_folders import MARKER
from sde_models._utils.seeds import generator_at
from sde_models.shards.folder import Folder

ROOT = Path(__file__).parents[2]
MIXTURE = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5)
MODEL = MIXTURE.score_model(sm.VPSDE())
X = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
QUICK: dict[str, Any] = {
    "divergence": sm.Hutchinson(2), "intervals": 20, "rtol": 0.05, "atol": 0.05, "progress": False,
}  # fmt: skip


def evaluate(out: Path, dataset: Any = X, model: Any = MODEL, **arguments: Any) -> sm.Evaluation:
    return sm.evaluate(model, dataset, out, **(QUICK | {"chunk": 4} | arguments))


def batch(first: int, last: int, seed: int = 0) -> sm.LogProb:
    """What the function for a single batch gives for some samples."""
    return sm.log_prob(MODEL, X[first:last], generator=generator_at(seed, first), **QUICK)


def join(results: list[sm.LogProb], name: str) -> Tensor:
    return torch.cat([getattr(result, name) for result in results])


def chunk_file(out: Path, index: int) -> Path:
    return out / f"chunk-{index:06d}.safetensors"


NAMES = ["value", "stderr", "solver_error", "quadrature_error"]


def assert_same(got: sm.Evaluation, wanted: Any) -> None:
    for name in NAMES:
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> sm.Evaluation:
    """All samples, in one go."""
    return evaluate(tmp_path_factory.mktemp("whole") / "out")


def test_the_numbers_are_those_of_the_function(whole: sm.Evaluation) -> None:
    alone = [batch(0, 4), batch(4, 8), batch(8, 11)]
    for name in NAMES:
        assert torch.equal(getattr(whole, name), join(alone, name)), name
    shares = [len(result.value) / 11 for result in alone]
    for name in ("nfe", "vjps"):
        mean = sum(
            share * getattr(result, name) for share, result in zip(shares, alone, strict=True)
        )
        assert getattr(whole, name) == pytest.approx(mean)
    assert whole.cost.calls == sum(result.cost.calls for result in alone)
    assert whole.unit == "nats"
    assert whole.resumed == 0
    assert f"({whole.cost} for each)" in str(whole)
    assert whole.summary()["vjps"] == whole.vjps
    torch.testing.assert_close(whole.mean, whole.value.mean())
    torch.testing.assert_close(whole.mean_stderr, whole.value.std() / 11**0.5)


def test_bits_per_dimension_of_levels(tmp_path: Path) -> None:
    images = torch.randint(0, 16, (5, 2), dtype=torch.uint8)
    got = evaluate(tmp_path, TensorDataset(images), levels=16, chunk=3)
    wanted = [
        sm.bits_per_dim(MODEL, images[a:b], 16, generator=generator_at(0, a), **QUICK)
        for a, b in ((0, 3), (3, 5))
    ]
    assert torch.equal(got.value, torch.cat([bits.per_image for bits in wanted]))
    nats = torch.cat([bits.log_prob.stderr for bits in wanted])
    torch.testing.assert_close(got.stderr * 2 * torch.log(torch.tensor(2.0)), nats)
    assert got.unit == "bits per dimension"


class Lazy(Dataset[Any]):
    """Items made when they are read, with an index that some accident is bound to when it is read
    for the third time: before that, twice, to compare it."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.breaks_at = breaks_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.breaks_at and self.read.count(index) == 2:
            raise KeyboardInterrupt
        self.read.append(index)
        return X[index], index


def test_a_dataset_is_read_when_it_is_needed(tmp_path: Path, whole: sm.Evaluation) -> None:
    dataset = Lazy()
    assert_same(evaluate(tmp_path, dataset), whole)
    compared = 2 * [*range(11)]
    assert dataset.read == [0, *compared, *range(11)]  # the first also for its shape


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, whole: sm.Evaluation) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, Lazy(breaks_at=9))
    dataset = Lazy()
    with sm.count_evaluations() as counter:
        got = evaluate(tmp_path, dataset)
    assert_same(got, whole)
    assert got.resumed == 8
    assert dataset.read == [0, *2 * [*range(11)], 8, 9, 10]
    assert counter.cost(3) == batch(8, 11).cost
    assert got.cost == whole.cost
    with sm.count_evaluations() as counter:
        assert evaluate(tmp_path, dataset).resumed == 11
    assert counter.calls == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_a_damaged_chunk_is_done_again(tmp_path: Path, whole: sm.Evaluation, damage: Any) -> None:
    evaluate(tmp_path)
    damage(chunk_file(tmp_path, 1))
    with pytest.warns(RuntimeWarning, match="chunk-000001.* is damaged .*samples 4 to 7"):
        got = evaluate(tmp_path)
    assert_same(got, whole)
    assert got.resumed == 7


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Or does not matter: a file of one sample, a bit of each byte."""
    wanted = evaluate(tmp_path, X[:1])
    path = chunk_file(tmp_path, 0)
    content = path.read_bytes()
    settings = json.loads((tmp_path / "settings.json").read_text())
    folder = Folder(tmp_path, settings)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.warns(RuntimeWarning, match="is damaged"):
            assert folder.read(0) is None
    path.write_bytes(content)
    found = folder.read(0)
    assert found is not None
    assert torch.equal(found.tensors["value"], wanted.value)


def test_a_chunk_of_another_evaluation_is_not_taken(tmp_path: Path, whole: sm.Evaluation) -> None:
    evaluate(tmp_path / "a")
    evaluate(tmp_path / "b", seed=1)
    chunk_file(tmp_path / "b", 0).replace(chunk_file(tmp_path / "a", 0))
    with pytest.warns(RuntimeWarning, match="written with other settings"):
        assert_same(evaluate(tmp_path / "a"), whole)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    evaluate(tmp_path)
    other = sm.GaussianMixture([[-1.0, 0.0], [1.0, 0.6]], 0.5).score_model(sm.VPSDE())
    with pytest.raises(ValueError, match="other settings") as caught:
        evaluate(tmp_path, chunk=3, seed=2, intervals=24, tol=None, max_steps=99)
    text = str(caught.value)
    for difference in (
        "argument intervals: 20 there, 24 now", "argument max_steps: not given there, 99 now",
        "chunk: 4 there, 3 now", "seed: 0 there, 2 now", "or choose another folder",
        "or overwrite=True (--overwrite)",
    ):  # fmt: skip
        assert difference in text
    assert "argument rtol" not in text
    assert "argument tol" not in text
    with pytest.raises(ValueError, match=r"samples: 11 there, 9 now.*model.mixture\."):
        evaluate(tmp_path, X[:9], other)
    with pytest.raises(ValueError, match=r"model.sde.beta_max: 20.0 there, 19.0 now"):
        evaluate(tmp_path, model=MIXTURE.score_model(sm.VPSDE(beta_max=19.0)))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged .* choose another folder"):
        evaluate(tmp_path)


def test_a_first_call_that_fails_binds_nobody(tmp_path: Path, whole: sm.Evaluation) -> None:
    with pytest.raises(TypeError, match="did you mean steps="):
        evaluate(tmp_path, step=3)
    with pytest.raises(ValueError, match="nosuch"):
        evaluate(tmp_path, solver="nosuch")
    with pytest.raises(ValueError, match="nosuch") as caught:
        evaluate(tmp_path, divergence="nosuch")
    assert caught.value.__notes__ == ["while samples 0 to 3 were evaluated"]
    assert_same(evaluate(tmp_path), whole)


def test_a_full_disk_leaves_earlier_chunks(
    tmp_path: Path, whole: sm.Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if "chunk-000001" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match=r"cannot write .*No space left.*make room") as caught:
            evaluate(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in tmp_path.iterdir()} == {
        MARKER,
        "settings.json",
        "chunk-000000.safetensors",
    }
    got = evaluate(tmp_path)
    assert got.resumed == 4
    assert_same(got, whole)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot be written to"):
        evaluate(tmp_path / "file" / "out")


class Small(nn.Module):
    """A network for which memory is short: it takes some number of rows and no more.

    Its buffer is what DistributedDataParallel would exchange in each forward pass.
    """

    described_apart = frozenset({"error", "most", "sizes"})

    def __init__(self, error: Exception | None = None, most: int = 10**9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(0.1, dtype=torch.float64))
        self.error, self.most = error, most
        self.sizes: list[int] = []

    def forward(self, t: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
        self.sizes.append(len(x))
        if self.error is not None and len(x) > self.most:
            raise self.error
        return self.weight * (x - (self.mean if shift is None else shift[:, None]))


STEPPED: dict[str, Any] = {"solver": "ode:euler", "steps": 4, "estimate_solver_error": False}
SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("not enough memory: you tried to allocate 8 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


def short(**arguments: Any) -> dict[str, Any]:
    left_out = {"intervals": None, "rtol": None, "atol": None, "divergence": "exact"}
    return left_out | STEPPED | arguments


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_chunks_are_halved_where_memory_runs_out(tmp_path: Path, error: Exception) -> None:
    network = Small(error, most=3)
    model = sm.ScoreModel(network, sm.VPSDE())
    got = evaluate(tmp_path, model=model, **short(chunk=8))
    assert network.sizes.count(8) == 1  # then 4, then 2 from there on
    assert network.sizes.count(4) == 1
    assert max(network.sizes[network.sizes.index(4) + 1 :]) == 2
    assert sorted(path.name for path in tmp_path.glob("chunk*")) == [
        "chunk-000000.safetensors",
        "chunk-000001.safetensors",
    ]
    wanted = evaluate(tmp_path / "ample", model=sm.ScoreModel(Small(), sm.VPSDE()), **short())
    torch.testing.assert_close(got.value, wanted.value)
    # 4 steps of Euler with an exact trace in 2 dimensions, whatever was tried and not completed.
    assert (got.nfe, got.vjps) == (wanted.nfe, wanted.vjps) == (4.0, 8.0)


def test_parts_have_their_own_random_numbers(tmp_path: Path) -> None:
    model = sm.ScoreModel(Small(SHORT[0], most=2), sm.VPSDE())
    arguments = short(divergence=sm.Hutchinson(1))
    got = evaluate(tmp_path, X[:4], model, **arguments)
    del arguments["intervals"]
    for first in (0, 2):
        alone = sm.log_prob(
            model, X[first : first + 2], generator=generator_at(0, first), **arguments
        )
        assert torch.equal(got.value[first : first + 2], alone.value)


def test_a_single_sample_that_does_not_fit(tmp_path: Path) -> None:
    model = sm.ScoreModel(Small(SHORT[1], most=0), sm.VPSDE())
    with pytest.raises(torch.OutOfMemoryError, match=r"sample 0 alone .*fewer probes"):
        evaluate(tmp_path, model=model, **short())


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    network = Small(RuntimeError("broken"), most=0)
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(tmp_path, model=sm.ScoreModel(network, sm.VPSDE()), **short())
    assert network.sizes == [4]


def test_conditioning_follows_its_samples(tmp_path: Path) -> None:
    model = sm.ScoreModel(Small(), sm.VPSDE())
    shift = torch.linspace(-1, 1, 11, dtype=torch.float64)
    by_name = evaluate(tmp_path / "a", model=model, cond={"shift": shift}, **short())
    of_items = evaluate(
        tmp_path / "b", Lazy(), model,
        cond=lambda items: {"shift": shift[[index for _, index in items]]}, **short(),
    )  # fmt: skip
    wanted = sm.log_prob(model, X, divergence="exact", cond={"shift": shift}, **STEPPED)
    torch.testing.assert_close(by_name.value, wanted.value)
    assert torch.equal(by_name.value, of_items.value)
    with pytest.raises(ValueError, match=r"other settings .*cond: "):
        evaluate(tmp_path / "a", model=model, cond={"shift": shift + 1}, **short())
    with pytest.raises(ValueError, match=r"cond\['shift'\] has shape \(3,\) for 11 samples"):
        evaluate(tmp_path / "c", model=model, cond={"shift": shift[:3]}, **short())


def test_the_bar_counts_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "evaluating" in shown
    assert "11/11" in shown


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"generator": torch.Generator()}, TypeError, "use seed="),
        ({"seed": 0.5}, ValueError, "seed must be an integer of 0 or more, got 0.5"),
        ({"chunk": 0}, ValueError, "chunk must be an integer"),
        ({"dataset": iter([X])}, TypeError, "map-style"),
        ({"dataset": X[:0]}, ValueError, "empty"),
        ({"dataset": [("a",)]}, TypeError, "must be a tensor, or a tuple .*got str"),
        ({"model": MIXTURE}, TypeError, "use mixture.score_model"),
    ],
)
def test_what_cannot_be_evaluated(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# Several processes.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of the same evaluation: ``whole``, then with wrapped networks."""
    folder = tmp_path_factory.mktemp("shared")
    script = folder / "share.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, warnings
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
        import torch
        from pathlib import Path
        from torch.nn.parallel import DistributedDataParallel
        import test_evaluation as here
        import sde_models as sm

        out, rank = Path({str(folder)!r}), os.environ["RANK"]
        def keep(name, result):
            torch.save(result, out / f"{{name}}-{{rank}}.pt")
        keep("plain", here.evaluate(out / "plain"))
        keep("again", here.evaluate(out / "plain"))
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        network = DistributedDataParallel(here.Small())
        model = sm.ScoreModel(network, sm.VPSDE())
        keep("inner", here.evaluate(out / "inner", model=model, **here.short()))
        assert model.network is network
        wrapped = DistributedDataParallel(sm.ScoreModel(here.Small(), sm.VPSDE()))
        arguments = here.short(accelerator=accelerator)
        keep("outer", here.evaluate(out / "outer", model=wrapped, **arguments))
        torch.distributed.destroy_process_group()
        """)
    )
    run_two("-W", "error", str(script))
    return folder


def saved(path: Path) -> sm.Evaluation:
    found: sm.Evaluation = torch.load(path, weights_only=False)
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_give_the_numbers_of_one(
    shared: Path, whole: sm.Evaluation, rank: int
) -> None:
    got = saved(shared / f"plain-{rank}.pt")
    assert_same(got, whole)
    assert (got.cost, got.resumed) == (whole.cost, 0)
    assert saved(shared / f"again-{rank}.pt").resumed == 11


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_wrapped_networks_are_taken_out(shared: Path, tmp_path: Path, which: str) -> None:
    wanted = evaluate(tmp_path, model=sm.ScoreModel(Small(), sm.VPSDE()), **short())
    assert torch.equal(saved(shared / f"{which}-1.pt").value, wanted.value)
