"""Pictures of samples."""

from __future__ import annotations

import io

import matplotlib.image
import pytest
import torch

from sde_models.data.pictures import draw


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (70, 3, 40, 40), (5, 2), (5, 1)])
def test_the_same_samples_give_the_same_bytes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    assert draw(x) == draw(x)
    assert draw(x) != draw(x + 0.5)


def test_images_stand_row_by_row_in_their_range() -> None:
    x = torch.full((9, 1, 8, 8), -1.0)
    x[8] = 3.0  # brighter than white
    pixels = matplotlib.image.imread(io.BytesIO(draw(x)))[..., 0]
    assert pixels.shape == (2 * (32 + 2) + 2, 8 * (32 + 2) + 2)
    assert (pixels[36:68, 2:34] == 1).all()
    assert pixels.sum() == 32 * 32


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 8, 8), (4, 8, 8)])
def test_what_cannot_be_drawn(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a picture shows images .*write an \.npz"):
        draw(torch.zeros(shape))
