"""Data sets, SDEs, networks and objectives by their names, and data ready for training."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models.data import DATA, TrainingData, digits, find_data, quantize, toy
from sde_models.losses import OBJECTIVES, find_objective
from sde_models.nn import find_network, usual_network
from sde_models.sdes import SDES, find_sde
from sde_models.shards.fingerprints import describe
from sde_models.training.identity import describe_run
from sde_models.training.settings import Settings

IN_FILES = {"mnist", "fashion-mnist", "cifar10"}


@pytest.mark.parametrize("name", sorted(set(DATA) - IN_FILES))
def test_data_by_name_are_the_same_every_time(name: str) -> None:
    first, second = find_data(name), find_data(name)
    x, _ = first.held_out(5)
    assert x.shape == (5, *first.event_shape)
    assert torch.equal(x, second.held_out(5)[0])
    assert first.data_std == pytest.approx(0.5 if first.levels else 1.0, abs=0.02)
    batches = first.batches()
    if isinstance(batches, Tensor):
        assert torch.equal(batches, second.batches())
    else:
        assert describe(vars(batches)) == describe(vars(second.batches()))


@pytest.mark.parametrize("name", sorted(IN_FILES))
def test_data_in_files_need_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="root must be their folder"):
        find_data(name)


def test_batches_are_dequantised_images_with_their_labels() -> None:
    found, known = find_data("digits"), digits()
    generator = torch.Generator().manual_seed(0)
    x, cond = found.batches(labels=True, dtype=torch.float64)(20, generator)
    assert x.dtype == torch.float64
    pairs = {
        (tuple(image.flatten().tolist()), int(label))
        for image, label in zip(known.train, known.train_labels, strict=True)
    }
    for image, label in zip(quantize(x, 17), cond["label"], strict=True):
        assert (tuple(image.flatten().tolist()), int(label)) in pairs
    again = found.batches(labels=True, dtype=torch.float64)(20, generator)[0]
    assert not torch.equal(again, x)


class OneByOne(torch.utils.data.Dataset[Any]):
    """Images that are read one by one, as those of a folder."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 2, 2), index, dtype=torch.uint8), index


def test_items_are_dequantised_anew_each_time() -> None:
    data = TrainingData(OneByOne(), levels=3, classes=3)
    with_labels, without = data.batches(labels=True), data.batches()
    assert len(with_labels) == 3
    x, cond = with_labels[2]
    assert cond == {"label": 2}
    assert torch.equal(quantize(x, 3), torch.full((1, 2, 2), 2))
    assert not torch.equal(without[2], without[2])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int32])
def test_batches_of_any_integers_are_the_same(dtype: torch.dtype) -> None:
    levels = torch.randint(0, 65536, (9, 2), generator=torch.Generator().manual_seed(0))
    drawn = [
        TrainingData(x, levels=65536).batches()(20, torch.Generator().manual_seed(1))
        for x in (levels, levels.to(dtype))
    ]
    assert torch.equal(*drawn)
    rows = {tuple(row) for row in quantize(drawn[0], 65536).tolist()}
    assert rows <= {tuple(row) for row in levels.tolist()}


def test_training_data_are_checked() -> None:
    with pytest.raises(ValueError, match="expected integers from 0 to 2"):
        TrainingData(torch.tensor([[3]]), levels=3)
    with pytest.raises(ValueError, match="NaN or infinite values in row 0"):
        TrainingData(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="no part for testing"):
        TrainingData(torch.zeros(3, 1)).held_out(2)
    with pytest.raises(ValueError, match="subtract their mean"):
        _ = TrainingData(torch.full((3, 1), 50.0)).data_std


@pytest.mark.parametrize("name", SDES)
def test_sdes_by_name(name: str) -> None:
    sde = find_sde(name, t_min=0.01, data_std=2.0)
    assert (sde.t_min, sde.data_std) == (0.01, 2.0)


@pytest.mark.parametrize(
    ("name", "event_shape"),
    [("residual", (2,)), ("mixing", (1, 8, 8)), ("ddpm++", (1, 12, 12)), ("ncsn++", (3, 8, 16))],
)
def test_networks_by_name(name: str, event_shape: tuple[int, ...]) -> None:
    network = find_network(name, event_shape, width=32, depth=1, classes=4)
    x = torch.randn(2, *event_shape)
    assert network(torch.rand(2), x, label=torch.tensor([0, 3])).shape == x.shape
    if name == "ddpm++":
        assert network.multipliers == (1, 2, 2)  # 12 can be halved twice


def test_what_suits_a_shape_is_known() -> None:
    shapes = ((2,), (7, 3), (3, 32, 32), (3, 33, 8))
    assert [usual_network(shape) for shape in shapes] == [
        "residual", "residual", "mixing", "ddpm++"
    ]  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_by_name(name: str) -> None:
    model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE(t_min=1e-2))
    loss = find_objective(name, weighting="likelihood", times="uniform")
    values = [
        function(model, torch.ones(5, 2), generator=torch.Generator().manual_seed(0), **settings)
        for function, settings in (
            (loss, {}),
            (OBJECTIVES[name], {"weighting": "likelihood", "times": "uniform"}),
        )
    ]
    assert values[0] == values[1] != OBJECTIVES[name](model, torch.ones(5, 2), weighting="simple")


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (find_data, "moons", "did you mean 'two-moons'"),
        (find_sde, "sub-vp", "did you mean 'subvp'"),
        (lambda name: find_network(name, (2,)), "residul", "did you mean 'residual'"),
        (find_objective, "slicd", "did you mean 'sliced'"),
    ],
)
def test_unknown_names_raise_with_the_nearest(find: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"unknown .* {name!r}; {message}"):
        find(name)


@pytest.mark.parametrize(
    ("find", "kind", "first"),
    [
        (find_data, "data set", "digits"),
        (lambda name: toy(name, 10), "toy", "two-moons"),
        (find_sde, "SDE", "vp"),
        (lambda name: find_network(name, (2,)), "network", "residual"),
        (find_objective, "objective", "denoising"),
        (lambda name: sm.nn.UNet((1, 8, 8), name), "layout", r"ddpm\+\+"),
        (lambda name: sm.Hutchinson(1, name), "probe distribution", "rademacher"),
        (lambda name: sm.ScoreModel(torch.nn.Identity(), sm.VPSDE(), name), "prediction", "eps"),
    ],
)
@pytest.mark.parametrize("given", [3, ["vp"]])
def test_what_is_no_name_is_refused(find: Any, kind: str, first: str, given: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"{kind} must be a name \({first}.*, got {re.escape(repr(given))}"
    ):
        find(given)


def test_runs_on_other_batches_are_distinguished() -> None:
    """What a run depends on names the contents of the tensors that are drawn from."""
    settings = Settings(
        steps=1, seconds=None, batch_size=1, learning_rate=1.0, weight_decay=0.0, ema_decay=0.0,
        warmup=0, clip_norm=1.0, mixed_precision=None, gradient_accumulation_steps=1,
        checkpoint_every=1, keep=1,
    )  # fmt: skip
    model = sm.ScoreModel(sm.nn.ResidualNetwork((1,), width=8, depth=1), sm.VPSDE())
    data = [TrainingData(torch.tensor([[k]]), levels=3).batches() for k in (0, 0, 1)]
    described = [describe_run(settings, 0, model, batches, None)["data"] for batches in data]
    assert described[0] == described[1] != described[2]
