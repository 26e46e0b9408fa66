"""Toys, patches of photographs, and data sets that are dequantised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sde_models as sm
from sde_models.data import TOYS, Dequantized, patches, quantize, toy, toy_mixture


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Toys


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_centred_and_of_unit_scale(name: str) -> None:
    x = toy(name, 100_000, generator=seeded())
    assert x.shape == (100_000, 2)
    assert x.dtype == torch.float32
    # Five standard errors, with the kurtosis of a normal as an upper bound.
    assert bool((x.mean(0).abs() < 5 * x.std(0) / 100_000**0.5).all())
    assert abs(float(x.var(0).mean()) - 1) < 5 * (2 / 100_000) ** 0.5
    assert bool((x.std(0) > 0.5).all())
    assert torch.equal(x, toy(name, 100_000, generator=seeded()))
    assert not torch.equal(x, toy(name, 100_000, generator=seeded(1)))


@pytest.mark.parametrize("name", ["eight-gaussians", "twenty-five-gaussians"])
def test_mixtures_have_the_density_of_their_draws(name: str) -> None:
    """E[log p] of the toy is that of the mixture's own draws: 5 standard errors."""
    mixture = sm.GaussianMixture(*toy_mixture(name))
    ours = mixture.log_prob(toy(name, 20_000, generator=seeded()))
    theirs = mixture.log_prob(mixture.sample(20_000, generator=seeded(1)))
    assert abs(ours.mean() - theirs.mean()) < 5 * (2 * theirs.var() / 20_000) ** 0.5
    torch.testing.assert_close(mixture.mean(), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixture.covariance(), torch.eye(2), rtol=0, atol=1e-5)


def test_the_checkerboard_has_its_squares() -> None:
    x = toy("checkerboard", 10_000, generator=seeded())
    square = (x * (2 / 3**0.5) + 2).floor().long()
    assert (int(square.min()), int(square.max())) == (0, 3)
    assert bool((square.sum(1) % 2 == 0).all())
    counts = (4 * square[:, 0] + square[:, 1]).bincount(minlength=16)
    assert int((counts > 1000).sum()) == 8


def test_unknown_toys_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'two-moons'"):
        toy("two_moons", 10)
    with pytest.raises(ValueError, match="n must be an integer of 1 or more, got 0"):
        toy("rings", 0)
    with pytest.raises(ValueError, match=r"no Gaussian mixture; known: eight-gaussians"):
        toy_mixture("rings")


# Patches


def places(found: Tensor, photographs: list[Any]) -> list[tuple[int, int]]:
    """Photograph and left edge of each patch, by looking for its pixels."""
    result = []
    for patch in found:
        hits = []
        for i, photograph in enumerate(photographs):
            image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
            corners = (image[:, None, None, :, :] == patch[:, :1, :1, None, None]).all(0)[0, 0]
            for y, x in corners.nonzero().tolist():
                window = image[:, y : y + patch.shape[1], x : x + patch.shape[2]]
                if torch.equal(window, patch):
                    hits.append((i, x))
        assert hits, "a patch that is in no photograph"
        result.append(hits[0])
    return result


def test_patches_of_the_two_kinds_share_no_pixel() -> None:
    data = patches(40, 20, size=16, generator=seeded())
    assert data.train.shape == (40, 3, 16, 16)
    assert data.test.shape == (20, 3, 16, 16)
    assert (data.train.dtype, data.levels) == (torch.uint8, 256)
    photographs = load_sample_images().images
    train, test = places(data.train, photographs), places(data.test, photographs)
    assert {i for i, _ in train} == {i for i, _ in test} == {0, 1}
    assert max(x for _, x in train) + 16 <= 512 <= min(x for _, x in test)


def test_patches_are_drawn_by_the_generator() -> None:
    first, second = (patches(5, 5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.test, second.test)
    assert first.train.shape == (5, 3, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 129}, "128 x 128"), ({"size": 0}, "size"), ({"train": 0}, "train")],
)
def test_patches_that_cannot_be_cut_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patches(**settings)


# Data sets that are dequantised


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 1, 2, 3), dtype=torch.uint8, generator=seeded())


def test_dequantised_images_keep_their_levels_and_labels(images: Tensor) -> None:
    data = Dequantized(TensorDataset(images, torch.arange(6)))
    assert len(data) == 6
    for i, (x, label) in enumerate(data[i] for i in range(6)):
        assert x.dtype == torch.float32
        assert torch.equal(quantize(x[None])[0], images[i].long())
        assert int(label) == i
    assert isinstance(Dequantized(images)[0], Tensor)  # type: ignore[arg-type]


def test_noise_depends_on_seed_epoch_and_index_alone(images: Tensor) -> None:
    images = images[:1].expand(6, -1, -1, -1)
    data = Dequantized(TensorDataset(images), seed=0)
    first = [data[i][0] for i in range(6)]
    torch.manual_seed(99)
    for i in reversed(range(6)):
        assert torch.equal(data[i][0], first[i])
        assert torch.equal(data[i - 6][0], first[i])
    other_seed = Dequantized(TensorDataset(images), seed=1)
    data.set_epoch(1)
    draws = [*first, other_seed[0][0], data[0][0], data[1][0]]
    assert float(torch.pdist(torch.stack(draws).flatten(1)).min()) > 0


def test_without_a_seed_the_noise_is_new_each_time(images: Tensor) -> None:
    data = Dequantized(images)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first, second = data[0], data[0]
    torch.manual_seed(0)
    assert torch.equal(data[0], first)
    assert not torch.equal(second, first)


def test_fit_draws_the_noise_of_images_anew_and_can_be_repeated(images: Tensor) -> None:
    data = Dequantized(images)  # type: ignore[arg-type]
    seen: list[Tensor] = []

    def loss(model: sm.ScoreModel, x0: Tensor, *, generator: object = None) -> Tensor:
        seen.append(x0)
        return sum(p.sum() for p in model.parameters())  # type: ignore[return-value]

    for _ in range(2):
        model = sm.ScoreModel(sm.nn.ResidualNetwork((1, 2, 3), width=4, depth=1), sm.VPSDE())
        sm.fit(model, data, steps=3, batch_size=8, loss=loss, seed=0, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert float(torch.pdist(torch.cat(seen[:3]).flatten(1)).min()) > 0


def test_workers_read_the_same(images: Tensor) -> None:
    data = Dequantized(TensorDataset(images), seed=0)
    alone, shared = (
        torch.cat([batch[0] for batch in DataLoader(data, batch_size=2, num_workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(alone, shared)


def test_transforms_lead_to_the_models_space(images: Tensor) -> None:
    logit = sm.data.LogitTransform(0.05)
    data = Dequantized(TensorDataset(images), 256, (0.0, 1.0), logit, dtype=torch.float64)
    (z,) = data[4]
    levels = quantize(logit.inv(z)[None], 256, data_range=(0.0, 1.0))[0]
    assert torch.equal(levels, images[4].long())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "index 3 of the data set: images hold NaN"),
        (256.0, "index 3 of the data set: images hold values from 0 to 256"),
        (0.5, r"index 3 of the data set: images hold 0\.5"),
    ],
)
def test_what_is_no_level_is_refused_by_its_index(value: float, message: str) -> None:
    images = torch.zeros(6, 1, 2, 2)
    images[3, 0, 1, 1] = value
    data = Dequantized(TensorDataset(images))
    assert data[2][0].isfinite().all()
    for index in (3, -3):
        with pytest.raises(ValueError, match=message):
            data[index]


def test_transforms_that_leave_the_numbers_are_refused(images: Tensor) -> None:
    data = Dequantized(TensorDataset(images), transform=torch.log)
    with pytest.raises(ValueError, match=r"index 1 .* transform"):
        data[1]


def test_what_is_no_map_style_data_set_is_refused() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.zeros(1)

    with pytest.raises(TypeError, match=r"map-style.*Stream"):
        Dequantized(Stream())
    with pytest.raises(TypeError, match=r"index 0 .* must be a torch\.Tensor"):
        Dequantized([[1, 2]])[0]  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="index 6 is out of range for 6 images"):
        Dequantized(TensorDataset(torch.zeros(6, 2)))[6]
