"""Data of a user's own, half precision, compiled networks, callbacks and logs."""

from __future__ import annotations

import copy
import itertools
import random
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import Dataset, TensorDataset

import sde_models as sm
from sde_models._utils.randomness import standard_normal_like
from sde_models._utils.seeds import generator_at
from sde_models._utils.shapes import may_look_at, without_waiting
from sde_models._utils.split_batches import RowGenerator, draw_rows
from sde_models.losses import denoising_score_matching
from sde_models.training import BitsPerDimCurve, Progress, SampleImages
from sde_models.training.group import Group
from sde_models.training.history import History
from sde_models.training.learner import Learner
from sde_models.training.settings import Settings
from sde_models.training.sources import Order, make_source

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def small_model(**arguments: Any) -> sm.ScoreModel:
    torch.manual_seed(0)
    network = sm.nn.ResidualNetwork((2,), width=16, depth=1, **arguments)
    return sm.ScoreModel(network, sm.VPSDE())


def train(data: Any = DATA, model: Any = None, **changes: Any) -> sm.Fit[Any]:
    arguments = {"steps": 6, "batch_size": 8, "seed": 3, "progress": False}
    return sm.fit(model or small_model(), data, **arguments | changes)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Items(Dataset[Any]):
    """What it is given, item by item."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Augmented(Items):
    """Augmentations from all global generators that there are."""

    def __getitem__(self, index: int) -> Any:
        return self.items[index] + torch.randn(2) + random.random() + np.random.rand()  # noqa: NPY002


# Data.


def test_a_dataset_gives_the_batches_of_its_tensor() -> None:
    assert torch.equal(train(Items(DATA)).losses, train(DATA).losses)


def test_worker_processes_change_nothing() -> None:
    alone = train(Augmented(DATA), steps=3)
    assert torch.equal(train(Augmented(DATA), steps=3, num_workers=1).losses, alone.losses)


def careless(batch_size: int, generator: torch.Generator | None) -> Tensor:
    """A batch that is drawn from global generators."""
    return torch.randn(batch_size, 2) + random.random() + np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("data", [Augmented(DATA), careless])
def test_data_drawn_from_global_generators_follow_from_the_seed_and_leave_them(data: Any) -> None:
    runs = []
    for before, seed in ((1, 3), (2, 3), (1, 4)):
        random.seed(before)
        np.random.seed(before)  # noqa: NPY002
        torch.manual_seed(before)
        model = small_model()
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        runs.append(train(data, model, seed=seed).losses)
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        assert after[:2] == states[:2]
        assert torch.equal(after[2], states[2])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len(runs[0].unique()) == len(runs[0])


def test_data_of_inference_mode_or_with_a_graph_are_constants() -> None:
    expected = train()
    with torch.inference_mode():
        frozen, labels = DATA.clone(), torch.zeros(8, dtype=torch.long)
    learning = DATA.clone().requires_grad_()
    for data in (frozen, Items(frozen), learning, 1.0 * learning):
        assert torch.equal(train(data).losses, expected.losses)
    assert learning.grad is None
    with torch.no_grad():
        assert torch.equal(train().losses, expected.losses)
    rows = {"label": labels}
    given = train(lambda n, generator: (frozen[:n], rows), small_model(classes=3))
    assert torch.equal(
        given.losses,
        train(lambda n, generator: (DATA[:n], {"label": 0 * DATA[:n, 0].long()}),
              small_model(classes=3)).losses,
    )  # fmt: skip


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no parameter .* requires a gradient.*requires_grad_\(\)"
    ):
        train(model=small_model().requires_grad_(False))
    with torch.inference_mode():
        model = small_model()
    with pytest.raises(ValueError, match=r"weight was made in torch\.inference_mode"):
        train(model=model)


def test_the_order_follows_from_seed_and_step_alone() -> None:
    rows = [Order(3, 8).indices(64, step).tolist() for step in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]
    assert Order(4, 8).indices(64, 0).tolist() != rows[0]
    parts = [Order(3, 8, rank, 3).indices(64, 0).tolist() for rank in range(3)]
    assert [row for part in parts for row in part] == rows[0]


def test_a_batch_is_drawn_evenly() -> None:
    counts = torch.zeros(4)
    for step in range(400):
        counts += Order(0, 16).indices(4, step).bincount(minlength=4)
    assert float((counts - 1600).abs().max()) < 5 * (6400 * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), ValueError, "data holds NaN .* row 1"),
        (Items([torch.zeros(2), torch.tensor([0.0, torch.inf])]), ValueError, "item 1 of the data"),
        (255 * DATA.abs(), ValueError, r"data runs from .* \(row \d+\).*data_std=1: scale"),
        (Items(255 * DATA.abs()), ValueError, r"item \d+ of the dataset runs from"),
        (lambda n, generator: torch.full((n, 2), torch.nan), ValueError, "the batch of step 1"),
        (lambda n, generator: torch.zeros(3, 2), ValueError, "step 1 has 3 samples, expected 8"),
        (Items([(torch.zeros(2), 3)]), TypeError, r"item 0 .* tuple of Tensor, int.*\"label\": 3"),
        (lambda n, generator: [torch.zeros(n, 2), 3], TypeError, "step 1 is a list of Tensor, int"),
        (lambda n, generator: (torch.zeros(n, 2), {}, 3), TypeError, "of Tensor, dict, int; expec"),
        (Items([]), ValueError, "the dataset is empty"),
        (Items(torch.zeros(4, 2, dtype=torch.uint8)), TypeError, "item . of the dataset has dtype"),
        (3, TypeError, "data is a int; expected a tensor"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_meant_are_refused(data: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train(data)


def test_items_in_tuples_of_one_are_the_data() -> None:
    wrapped, bare = (train(data).losses for data in (TensorDataset(DATA), Items(DATA)))
    assert torch.equal(wrapped, bare)


class Weighed(nn.Module):
    """A linear layer of conditions, which it keeps."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=dtype)
        self.seen: list[Tensor] = []

    def forward(self, t: Tensor, x: Tensor, w: Tensor, k: Tensor, n: None = None) -> Tensor:
        self.seen.append(w.clone())
        assert (w.dtype, k.dtype, n) == (x.dtype, torch.int64, None)
        return x + self.layer(w) * k[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_each_item_has_its_own_row_of_conditions_in_the_dtype_of_the_network(
    kind: Any, dtype: torch.dtype
) -> None:
    items = [
        (torch.full((2,), 0.1 * i), {"w": kind([float(i), 10.0 + i]), "k": i, "n": None})
        for i in range(4)
    ]
    network = Weighed(dtype)
    train(Items(items), sm.ScoreModel(network, sm.VPSDE()), steps=1, gradient_accumulation_steps=2)
    rows = Order(3, 8).indices(4, 0).to(dtype)
    assert torch.equal(torch.cat(network.seen), torch.stack([rows, 10 + rows], 1))


@pytest.mark.parametrize("data", [(DATA[:8], None), [DATA[:8], {}]], ids=["None", "list"])
def test_no_conditions_are_none_or_empty(data: Any) -> None:
    alone = train(lambda n, generator: DATA[:8])
    assert torch.equal(train(lambda n, generator: data).losses, alone.losses)
    assert train(Items([(x, None) for x in DATA])).losses.equal(train(Items(DATA)).losses)


def test_conditions_that_all_samples_share_are_not_cut() -> None:
    seen = []

    def source(size: int, generator: Any) -> Any:
        return DATA[:size], {"label": torch.arange(size), "grid": torch.zeros(1, 4), "name": "a"}

    def loss(model: Any, x0: Tensor, *, generator: Any, cond: Any) -> Tensor:
        seen.append((cond["label"].tolist(), cond["grid"].numel(), cond["name"]))
        return denoising_score_matching(model, x0, generator=generator)

    train(source, steps=1, batch_size=8, gradient_accumulation_steps=2, loss=loss)
    assert seen == [([0, 1, 2, 3], 4, "a"), ([4, 5, 6, 7], 4, "a")]


# Losses.


def test_a_loss_that_is_no_function_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"loss is 'sliced'; expected a .* sm.losses.sliced_score_matching,"
    ):
        train(loss="sliced")


OBJECTIVES: dict[str, Any] = {
    "output": denoising_score_matching,
    "likelihood": partial(denoising_score_matching, weighting="likelihood", stratified=False),
    "an object": partial(denoising_score_matching, weighting=sm.losses.min_snr(2.0)),
    "one level": partial(denoising_score_matching, sigma=0.5),
    "levels": partial(denoising_score_matching, times=sm.losses.level_times([1.0, 0.3])),
    "hutch++": partial(sm.losses.implicit_score_matching, divergence=sm.HutchPlusPlus(3)),
    "xtrace": partial(sm.losses.implicit_score_matching, divergence=sm.XTrace(2)),
    "sliced": partial(sm.losses.sliced_score_matching, probes=3, distribution="sphere"),
    "differences": sm.losses.finite_difference_sliced,
    "simulated": partial(sm.losses.simulated_score_matching, steps=8),
    "penalty": partial(sm.losses.fokker_planck_penalty, divergence="hutchinson"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_draw_what_a_direct_call_draws(name: str) -> None:
    """The numbers of the whole are those of the same generator, and parts have their rows."""
    model, loss = small_model(), OBJECTIVES[name]
    nn.init.normal_(model.network.write.weight)
    wanted = loss(model, DATA, generator=torch.Generator().manual_seed(1)).detach()
    generator = RowGenerator("cpu")
    for cuts in ([0, 64], [0, 5, 40, 64]):
        values = []
        for rows in itertools.starmap(slice, itertools.pairwise(cuts)):
            generator.begin(rows, 64, seed=1, seed_of_part=2)
            part = loss(model, DATA[rows], generator=generator).detach()
            values.append(part * (rows.stop - rows.start) / 64)
        torch.testing.assert_close(sum(values), wanted, rtol=1e-4, atol=1e-6)


def test_some_rows_of_a_part_draw_their_own_numbers() -> None:
    generator, drawn = RowGenerator("cpu"), []
    for first in (0, 4):
        generator.begin(slice(first, first + 4), 8, seed=1, seed_of_part=first)
        drawn.append(draw_rows(standard_normal_like, DATA[:3], generator))
    assert drawn[0].shape == (3, 2)
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    "name", ["output", "likelihood", "an object", "one level", "sliced", "differences", "penalty"]
)
def test_no_objective_looks_at_numbers_on_an_accelerator(name: str) -> None:
    """Tensors on the device "meta" have none, and raise where one looks."""
    with torch.device("meta"):
        model, x0 = small_model(), torch.empty(8, 2)
    generator = RowGenerator("cpu")
    generator.begin(slice(0, 8), 16, seed=1, seed_of_part=2)
    with without_waiting():
        OBJECTIVES[name](model, x0, generator=generator).backward()
        with pytest.raises(ValueError, match="x0 holds NaN or infinite values in row 0"):
            OBJECTIVES[name](model, torch.full((1, 2), torch.nan))  # the CPU's are at hand
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        OBJECTIVES[name](model, x0, generator=generator)


def test_fit_lets_no_loss_look_at_an_accelerator_and_refuses_times_that_are_given() -> None:
    seen = []

    def loss(model: Any, x0: Tensor, *, generator: Any) -> Tensor:
        seen.append(may_look_at(torch.empty(1, device="meta")))
        return denoising_score_matching(model, x0, generator=generator)

    train(steps=2, loss=loss)
    assert seen == [False, False]
    assert may_look_at(torch.empty(1, device="meta"))
    with torch.device("meta"):
        model, x0 = small_model(), torch.empty(8, 2)
    with without_waiting(), pytest.raises(ValueError, match="t=7 outside"):
        denoising_score_matching(model, x0, t=7.0)


# Precision and compilation.


def test_half_precision_is_close_and_keeps_the_weights_in_single() -> None:
    whole = train(steps=20)
    half = train(steps=20, mixed_precision="bf16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert not torch.equal(half.losses, whole.losses)
    assert torch.allclose(half.losses, whole.losses, rtol=0.02)


def test_scaled_half_precision_is_close() -> None:
    assert torch.allclose(
        train(steps=20, mixed_precision="fp16").losses, train(steps=20).losses, rtol=0.02
    )


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="mixed_precision must be 'bf16', 'fp16' or None, got 'h'"):
        train(mixed_precision="h")


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_network_gives_the_same_losses(inside: bool) -> None:
    model = small_model()
    if inside:
        model.network.compile(backend="aot_eager")
    else:
        model.network = torch.compile(model.network, backend="eager")
    assert torch.allclose(train(model=model).losses, train().losses, rtol=1e-5)


def test_compilation_in_one_test_leaves_the_checks_of_distributions_on_in_the_next() -> None:
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, -1.0)


# Accelerate.


def test_an_accelerator_of_the_caller_changes_nothing() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert torch.equal(train(accelerator=accelerator).losses, train().losses)


def test_gradients_are_those_of_the_loss() -> None:
    """Against autograd by hand, with the numbers of the run."""
    settings = Settings(1, None, 8, 1e-3, 0.0, 0.9, 0, 1e9, None, 3, 10, 1)
    model, order = small_model(), Order(3, 8)
    nn.init.normal_(model.network.write.weight)
    by_hand = copy.deepcopy(model)
    learner = Learner(model, denoising_score_matching, settings, order, Group(None))
    x0, cond = next(make_source(DATA, order, model)(0))
    value, norm = learner.compute_gradients((x0, cond), 0)
    wanted = denoising_score_matching(by_hand, x0, generator=generator_at(3, "loss", 0))
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
    for got, parameter in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(got.grad, parameter.grad, atol=1e-5)
    total = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
    assert float(norm) == pytest.approx(float(total), rel=1e-4)


# Callbacks and logs.


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def image_model() -> sm.ScoreModel:
    torch.manual_seed(0)
    return sm.ScoreModel(sm.nn.ResidualNetwork((1, 4, 4), width=16, depth=1), sm.VPSDE(t_min=1e-3))


def test_several_callbacks_draw_images_and_measure_bits(tmp_path: Path) -> None:
    show = SampleImages(2, (1, 4, 4), tmp_path, count=9, solver="ddim", steps=2)
    levels = torch.randint(0, 16, (2, 1, 4, 4))
    bits = BitsPerDimCurve(3, levels, 16, rtol=1e-2, atol=1e-2)
    watched = train(images(), image_model(), callback=[show, bits])
    assert torch.equal(watched.losses, train(images(), image_model()).losses)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-0000000{k}.png" for k in (2, 4, 6)]
    assert list(bits.curve) == [3, 6]
    final = sm.bits_per_dim(
        watched.model, levels, 16, rtol=1e-2, atol=1e-2,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert bits.curve[6] == pytest.approx(float(final.value))


def test_callbacks_that_never_come_are_refused() -> None:
    with pytest.raises(ValueError, match="every must be an integer of 1 or more, got 0"):
        SampleImages(0, (1, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleImages(1, (1, 4, 4), stps=2), "stps=: did you mean steps="),
        (lambda: SampleImages(1, (1, 4, 4), generator=None), "no generator=: use seed="),
        (lambda: BitsPerDimCurve(1, images(), rtoll=0.1), "rtoll=: did you mean rtol="),
        (lambda: BitsPerDimCurve(1, images(), importance_sample=2), "mean importance_samples="),
    ],
)
def test_options_of_callbacks_are_checked_before_training(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_options_of_callbacks_may_be_none_or_those_of_bits_per_dim() -> None:
    assert SampleImages(1, (1, 4, 4), steps=None).options == {"steps": 20}
    given: Any = {"importance_samples": 2, "repeats": 3, "dequantization": "truncated-normal"}
    assert BitsPerDimCurve(1, images(), solver="ode:rk4", **given).options["repeats"] == 3


def test_numbers_and_images_go_to_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    show = SampleImages(10, (1, 4, 4), count=4, solver="ddim", steps=2)
    result = train(images(), image_model(), steps=20, log_dir=tmp_path, callback=show)
    written = accumulator.EventAccumulator(str(tmp_path))
    written.Reload()
    losses = written.Scalars("loss")
    assert [event.step for event in losses] == [10, 20]
    assert losses[-1].value == pytest.approx(float(result.losses[-1]))
    assert set(written.Tags()["scalars"]) == {
        "loss", "gradient norm", "learning rate", "steps per second",
    }  # fmt: skip
    assert written.Tags()["images"]


def test_a_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'sde-models\[tensorboard\]'"):
        train(log_dir=tmp_path)


def test_a_callback_sees_where_the_run_is() -> None:
    seen: list[Progress] = []
    train(callback=seen.append)
    assert [progress.main for progress in seen] == [True] * 6
    assert [progress.seconds for progress in seen] == sorted(p.seconds for p in seen)


# What is looked at only now and then.


def test_losses_that_were_read_late_still_name_their_step() -> None:
    history = History([1.0, 2.0], 1e-3, scaled=False)
    for loss in (3.0, 4.0, torch.nan, 5.0):
        history.add(torch.tensor([loss, 1.0, 0.0]))
    assert history.step == 6
    with pytest.raises(FloatingPointError, match="the loss is nan at step 5"):
        history.read()


@pytest.mark.parametrize("scaled", [True, False])
def test_infinite_gradients_stop_a_run_unless_they_are_scaled(scaled: bool) -> None:
    history = History([], 1e-3, scaled)
    history.add(torch.tensor([1.0, torch.inf, 1.0]))
    if scaled:
        history.read()
        assert history.stop
    else:
        with pytest.raises(FloatingPointError, match="gradient has the norm inf at step 1"):
            history.read()


def test_gradients_that_stay_infinite_stop_a_scaled_run_too() -> None:
    history = History([], 1e-3, scaled=True)
    for norm in [torch.inf] * 50 + [1.0] + [torch.nan] * 50:
        history.add(torch.tensor([1.0, norm, 0.0]))
    history.read()
    history.add(torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(FloatingPointError, match="gradient has the norm nan at step 102"):
        history.read()


def test_losses_are_read_late_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU in the disguise of an accelerator, which a look at the loss would keep waiting."""
    from sde_models.training import loop

    reads, read = [], History.read

    def count(history: History) -> None:
        reads.append(history.step)
        read(history)

    monkeypatch.setattr(History, "read", count)
    monkeypatch.setattr(loop, "READ_AT_ONCE", ())
    result = train(steps=25)
    assert reads == [0, 10, 20, 25]
    assert torch.equal(result.losses, train(steps=25).losses)


def test_a_thread_that_may_not_take_signals_trains_all_the_same(tmp_path: Path) -> None:
    done = []
    thread = threading.Thread(target=lambda: done.append(train(out=tmp_path)))
    thread.start()
    thread.join(timeout=60)
    assert done[0].steps == 6
