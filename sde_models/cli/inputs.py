"""What a command reads: a model, and data by a name or a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sde_models.checkpoints import load_model
from sde_models.cli.options import Precision
from sde_models.data import LevelImages, digits, image_folder, read_array
from sde_models.models import ScoreModel
from sde_models.shards import Shards


def read_model(path: Path, device: str, precision: Precision | None) -> ScoreModel:
    """Read a model onto a device.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model file, or there is no such device.
    """
    model = load_model(path)
    try:
        return model.to(device, None if precision is None else precision.dtype)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from error


def read_data(
    where: str,
    *,
    levels: int | None = None,
    first: int | None = None,
    array: str | None = None,
    names: tuple[str, str] = ("x", "z"),
    precision: Precision | None = None,
) -> tuple[Tensor | Dataset[Any], int | None]:
    """Data, and the number of their levels, None for floating data.

    Args:
        where: "digits", a folder of shards or of folders with images, or a file of arrays.
        levels: Number of levels that was told.
        first: Take so many only.
        array: Name of the array in the file.
        names: Its likely names, if it was not told.
        precision: Dtype of floating data.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If it cannot be read, or holds whole numbers whose levels were not told.
    """
    dtype = None if precision is None else precision.dtype
    if where == "digits":
        images = digits()
        return images.test[:first], levels or images.levels
    if Path(where).is_dir():
        found, levels = _read_folder(where, levels, dtype)
        return Subset(found, range(len(found))[:first]), levels
    x = read_array(where, names if array is None else (array,))
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{where} holds an array of shape {tuple(x.shape)}, wanted (B, *event)")
    x = x[:first]
    if levels is None and not x.is_floating_point():
        raise ValueError(
            f"{where} holds {x.dtype}: for images with whole levels give --levels, 256 for bytes"
        )
    return (x if levels is not None or dtype is None else x.to(dtype)), levels


def shape_of(dataset: Tensor | Dataset[Any]) -> tuple[int, ...]:
    """Shape of the first sample, which may be a tuple with its label."""
    sample = dataset[0]
    return tuple((sample[0] if isinstance(sample, tuple) else sample).shape)


def _read_folder(
    where: str, levels: int | None, dtype: torch.dtype | None
) -> tuple[Shards | LevelImages, int | None]:
    """Shards if there are any, else images, and their levels."""
    try:
        return Shards(where, dtype=dtype), levels
    except FileNotFoundError as no_shards:
        try:
            images = image_folder(where)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{no_shards}; and {error}") from error
        return images, levels or images.levels


def read_shape(text: str | None, model: ScoreModel) -> tuple[int, ...]:
    """Shape of one sample, as it was told or the model's own.

    Raises:
        ValueError: If neither tells it.

    Example:
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> read_shape("1,8,8", model)
        (1, 8, 8)
    """
    if text is None and model.event_shape is not None:
        return tuple(model.event_shape)
    try:
        return tuple(int(size) for size in (text or "").split(","))
    except ValueError as error:
        told = "the model does not tell the shape of a sample" if text is None else f"got {text!r}"
        raise ValueError(f"--shape must be such as 1,8,8: {told}") from error
