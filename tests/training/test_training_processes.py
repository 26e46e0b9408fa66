"""However a batch is split, over processes or over time, the weights come out the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.two_processes import run_two
from torch import Tensor, nn
from torch.utils.data import Dataset

import sde_models as sm
from sde_models._utils.split_batches import draw_rows
from sde_models.losses import (
    LearnedTimes,
    denoising_score_matching,
    finite_difference_sliced,
    fokker_planck_penalty,
    implicit_score_matching,
    min_snr,
    simulated_score_matching,
    sliced_score_matching,
)
from sde_models.training.checkpoints import CheckpointFolder

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()


class Labelled(Dataset[Any]):
    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        return DATA[index] + 0.1 * torch.randn(2, dtype=torch.float64), {"label": index % 3}


def labelled(batch_size: int, generator: torch.Generator | None) -> Any:
    rows = torch.randint(len(DATA), (batch_size,), generator=generator)
    return DATA[rows], {"label": rows % 3}


SOURCES: dict[str, Any] = {"tensor": DATA, "dataset": Labelled(), "function": labelled}
LIKELIHOOD = partial(denoising_score_matching, weighting="likelihood")


def penalised(model: Any, x0: Tensor, *, generator: Any, **cond: Any) -> Tensor:
    """A sum of two objectives, as a user writes it."""
    fit = denoising_score_matching(model, x0, generator=generator, **cond)
    penalty = partial(fokker_planck_penalty, divergence="hutchinson")
    return fit + 0.01 * penalty(model, x0, generator=generator, **cond)


def own(model: Any, x0: Tensor, *, generator: Any, **cond: Any) -> Tensor:
    """A loss of a user's own, as docs/training.md has it."""

    def draw(like: Tensor, generator: Any) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    noise = draw_rows(draw, x0, generator)
    return denoising_score_matching(model, x0, 0.5, noise, **cond)


def learned() -> Any:
    """Times that begin anew in each run."""
    return partial(LIKELIHOOD, times=LearnedTimes(bins=4), stratified=False)


LOSSES: dict[str, Callable[[], Any]] = {
    "one level": lambda: partial(denoising_score_matching, sigma=0.5),
    "an object": lambda: partial(denoising_score_matching, weighting=min_snr(2.0)),
    "implicit": lambda: partial(implicit_score_matching, divergence=sm.Hutchinson(2, "gaussian")),
    "sliced": lambda: sliced_score_matching,
    "differences": lambda: finite_difference_sliced,
    "simulated": lambda: partial(simulated_score_matching, steps=4),
    "penalised": lambda: penalised,
    "own": lambda: own,
    "learned": learned,
}


class Watching(nn.Module):
    """A network that replaces a buffer by what it sees in its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2).double()
        self.register_buffer("mean", torch.zeros(2).double())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + x.detach().mean(0)
        return self.layer(x) + self.mean


class Random(nn.Module):
    """A network with dropout and noise of its own, which keeps what it drew in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2).double()
        self.dropout = nn.Dropout(0.5)
        self.drawn: list[Tensor] = []

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        mask, noise = self.dropout(torch.ones(64).double()), torch.randn(64).double()
        self.drawn.append(torch.stack([mask, noise]))
        return self.layer(x) * mask[:2] + noise[:2]


def draw(**changes: Any) -> tuple[Tensor, sm.Fit[Any]]:
    """What a random network drew in training, one row for each of its calls."""
    torch.manual_seed(0)
    model = sm.ScoreModel(Random(), sm.VPSDE())
    arguments = {"steps": 6, "batch_size": 9, "seed": 3, "progress": False}
    result = sm.fit(model, DATA, **arguments | changes)
    return torch.stack(model.network.drawn), result


def train(data: Any, **changes: Any) -> sm.Fit[Any]:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((2,), width=8, depth=1, classes=3).double()
    model = sm.ScoreModel(network, sm.VPSDE())
    arguments = {"steps": 10, "batch_size": 9, "seed": 3, "warmup": 2, "progress": False}
    return sm.fit(model, data, **arguments | changes)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_same(got: sm.Fit[Any], wanted: sm.Fit[Any]) -> None:
    assert torch.allclose(weights(got.model), weights(wanted.model), rtol=0, atol=1e-9)
    assert torch.allclose(got.losses, wanted.losses, rtol=1e-9)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("loss", [denoising_score_matching, LIKELIHOOD])
def test_accumulated_parts_are_the_whole_batch(name: str, loss: Any) -> None:
    whole = train(SOURCES[name], loss=loss)
    for parts in (2, 4):  # of 9 samples: parts of different sizes
        assert_same(train(SOURCES[name], loss=loss, gradient_accumulation_steps=parts), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_parts_are_the_whole_batch_for_every_objective(name: str) -> None:
    assert_same(
        train(DATA, loss=LOSSES[name](), gradient_accumulation_steps=2),
        train(DATA, loss=LOSSES[name]()),
    )


def test_other_losses_draw_for_each_part_anew() -> None:
    def loss(model: Any, x0: Tensor, *, generator: Any) -> Tensor:
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return denoising_score_matching(model, x0, 0.5, noise)

    whole, parts = train(DATA, loss=loss), train(DATA, loss=loss, gradient_accumulation_steps=2)
    assert not torch.allclose(whole.losses, parts.losses)
    assert torch.equal(train(DATA, loss=loss, gradient_accumulation_steps=2).losses, parts.losses)


def all_differ(drawn: Tensor) -> bool:
    """Whether no two calls drew the same mask or the same noise; by chance they do at 2^-64."""
    return all(len(rows.unique(dim=0)) == len(rows) for rows in drawn.unbind(1))


def test_what_a_network_draws_follows_from_seed_step_and_part() -> None:
    whole, _ = draw()
    parts, _ = draw(gradient_accumulation_steps=2)
    assert len(whole) == 6
    assert all_differ(whole)
    assert len(parts) == 12
    assert all_differ(parts)
    again, other = draw()[0], draw(seed=4)[0]
    assert torch.equal(again, whole)
    assert all_differ(torch.cat([whole, other]))
    torch.manual_seed(99)  # what the process did before must not matter
    model = sm.ScoreModel(Random(), sm.VPSDE())
    before = torch.get_rng_state()
    sm.fit(model, DATA, steps=6, batch_size=9, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.stack(model.network.drawn), whole)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes that talk over gloo leave."""
    folder = tmp_path_factory.mktemp("processes")
    run_two("-W", "error", __file__, str(folder))
    return folder


def together(folder: Path) -> None:
    """What each of two processes does."""
    rank = os.environ["RANK"]

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        def callback(progress: Any) -> None:
            if progress.step == step:
                raise Stop

        return callback

    def told(progress: Any) -> None:
        if progress.step == 5 and rank == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    def keep(name: str, result: sm.Fit[Any]) -> None:
        kept = {"weights": weights(result.model), "losses": result.losses}
        torch.save(kept, folder / f"{name}-{rank}.pt")

    for name, data in SOURCES.items():
        keep(name, train(data))
    keep("likelihood", train(DATA, loss=LIKELIHOOD))
    keep("accumulate", train(DATA, gradient_accumulation_steps=2))
    for name, loss in LOSSES.items():
        keep(name, train(DATA, loss=loss()))
    times = LearnedTimes(bins=4)
    train(DATA, loss=partial(learned(), times=times), gradient_accumulation_steps=2)
    torch.save(times.density, folder / f"density-{rank}.pt")
    drawn, result = draw(out=folder / "drawn")
    random, out = {"whole": drawn, "weights": weights(result.model)}, folder / "drawn again"
    try:
        draw(out=out, checkpoint_every=2, callback=stop_at(5))
    except Stop:
        random["resumed"], result = draw(out=out, checkpoint_every=2)
        random["resumed weights"] = weights(result.model)
    torch.save(random, folder / f"random-{rank}.pt")
    result = sm.fit(sm.ScoreModel(Watching(), sm.VPSDE()), DATA, steps=3, batch_size=9, seed=3,
                    progress=False)  # fmt: skip
    torch.save(result.model.network.mean, folder / f"buffer-{rank}.pt")
    out = folder / "resumed"
    try:
        train(DATA, out=out, checkpoint_every=4, callback=stop_at(7))
    except Stop:
        keep("resumed", train(DATA, out=out, checkpoint_every=4))
    try:
        train(DATA, out=folder / "told", checkpoint_every=2, callback=told)
    except (KeyboardInterrupt, SystemExit) as left:
        (folder / f"told-{rank}").write_text(repr(left))
    train(DATA, out=folder / "told", checkpoint_every=2)
    try:
        train(DATA, steps=None, seconds=1.0)
    except ValueError as error:
        assert "give steps=" in str(error)  # noqa: PT017, not under pytest
    torch.distributed.barrier()  # neither closes its connections while the other needs them
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", [*SOURCES, "likelihood", "accumulate", "resumed"])
def test_two_processes_train_to_the_weights_of_one(shared: Path, name: str, rank: int) -> None:
    got = torch.load(shared / f"{name}-{rank}.pt", weights_only=True)
    data = SOURCES.get(name, DATA)
    wanted = train(data, **({"loss": LIKELIHOOD} if name == "likelihood" else {}))
    assert torch.allclose(got["weights"], weights(wanted.model), rtol=0, atol=1e-9)
    assert torch.allclose(got["losses"], wanted.losses, rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_are_one_for_every_objective(shared: Path, name: str, rank: int) -> None:
    got = torch.load(shared / f"{name}-{rank}.pt", weights_only=True)
    wanted = train(DATA, loss=LOSSES[name]())
    assert torch.allclose(got["weights"], weights(wanted.model), rtol=0, atol=1e-9)
    assert torch.allclose(got["losses"], wanted.losses, rtol=1e-6)


def test_times_learn_from_the_rows_of_all_processes(shared: Path) -> None:
    times = LearnedTimes(bins=4)
    train(DATA, loss=partial(learned(), times=times))
    assert float(times.density.std()) > 0.01
    for rank in (0, 1):
        got = torch.load(shared / f"density-{rank}.pt", weights_only=True)
        assert torch.allclose(got, times.density, rtol=1e-9)


def test_networks_draw_other_numbers_in_each_process_and_the_same_when_resumed(
    shared: Path,
) -> None:
    kept = [torch.load(shared / f"random-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all_differ(torch.cat([own["whole"] for own in kept]))
    for own in kept:
        assert torch.equal(own["resumed"], own["whole"][4:])
        assert torch.equal(own["resumed weights"], own["weights"])
        assert torch.equal(own["weights"], kept[0]["weights"])


def test_replaced_buffers_are_those_of_the_first_process(shared: Path) -> None:
    first, second = (torch.load(shared / f"buffer-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert float(first.abs().max()) > 0


def test_processes_leave_together_when_one_gets_a_signal(shared: Path) -> None:
    assert (shared / "told-0").read_text().startswith("KeyboardInterrupt('stopped after step 6;")
    assert (shared / "told-1").read_text() == "SystemExit(143)"
    assert torch.equal(
        CheckpointFolder(shared / "told").read(10).state["losses"],
        torch.load(shared / "tensor-0.pt", weights_only=True)["losses"],
    )


def test_a_run_of_two_processes_may_go_on_as_one(shared: Path) -> None:
    assert torch.allclose(
        weights(train(DATA, out=shared / "resumed", checkpoint_every=4).model),
        weights(train(DATA).model),
        rtol=0,
        atol=1e-9,
    )


def test_a_batch_smaller_than_its_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=9 cannot be split into 10 parts"):
        train(DATA, gradient_accumulation_steps=10)


def test_an_accelerator_that_splits_the_model_is_refused() -> None:
    kind = SimpleNamespace(value="FSDP")
    accelerator: Any = SimpleNamespace(process_index=0, num_processes=1, distributed_type=kind)
    with pytest.raises(ValueError, match=r"set up for FSDP: use one without plugins"):
        train(DATA, accelerator=accelerator)


if __name__ == "__main__":
    together(Path(sys.argv[1]))
