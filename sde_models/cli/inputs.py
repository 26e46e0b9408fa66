"""Inputs of a command: a model, and data by a name or a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from sde_models._utils.errors import nearest_names
from sde_models._utils.shapes import check_event_shape
from sde_models.cli.options import Reading
from sde_models.data import DATA, TrainingData, find_data, image_folder, read_array
from sde_models.data.arrays import array_names
from sde_models.data.dequantization import check_data_range
from sde_models.data.registry import FROM_FILES
from sde_models.models.model_files import load_model
from sde_models.models.score_model import ScoreModel
from sde_models.shards import Shards

KINDS = {"x": "data", "z": "latents"}
"""What an array of that name holds."""

LABELS = ("label", "labels")
"""Names of an array of labels."""

MODEL_FILE = "model.safetensors"
"""Name of the model in the folder of a training run."""


def read_model(
    path: Path, device: str, dtype: torch.dtype | None, data_range: str | None
) -> ScoreModel:
    """Read a model onto a device, from its file or the folder of a training run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model file, there is no such device, or the range is not valid.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    model = place(load_model(file), device, dtype)
    if data_range is not None:
        model.data_range = read_range(data_range)
    return model


def read_range(text: str) -> tuple[float, float]:
    """Lowest and highest number of data.

    Raises:
        ValueError: If they are not two numbers, the lower one first.

    Example:
        >>> read_range("0,1")
        (0.0, 1.0)
    """
    try:
        return check_data_range([float(value) for value in text.split(",")])
    except ValueError as error:
        raise ValueError(
            f"--data-range must be the lowest and the highest number of the data, such as 0,1; got "
            f"{text!r}"
        ) from error


def place(model: ScoreModel, device: str, dtype: torch.dtype | None) -> ScoreModel:
    """Move a model to a device and a dtype."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device {device!r} cannot be used: give cpu, cuda, mps, or one of several, as cuda:1"
        ) from error
    try:
        return model.to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}") from error


def choose_label(model: ScoreModel, label: int | None) -> dict[str, Any]:
    """The label as a condition for a model, none for a model without classes.

    Raises:
        ValueError: If the model was trained with labels and none is given, or the reverse.

    Example:
        >>> network = sm.nn.ResidualNetwork((2,), width=16, depth=1, classes=10)
        >>> choose_label(sm.ScoreModel(network, sm.VPSDE()), 3)
        {'label': 3}
    """
    classes = getattr(model.network, "classes", None)
    if classes is None and label is None:
        return {}
    if classes is None or label is None or not 0 <= label < classes:
        kind = "without labels" if classes is None else f"with labels from 0 to {classes - 1}"
        given = "none was given" if label is None else f"got {label}"
        raise ValueError(f"--label: the model was trained {kind}, {given}")
    return {"label": label}


def read_data(
    where: str,
    reading: Reading,
    *,
    first: int | None = None,
    name: str = "x",
    model: ScoreModel,
    label: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor | Dataset[Any], int | None]:
    """Data, and the number of their levels, None for floating data.

    Args:
        where: A name in ``sm.data.DATA``, of which the part for testing is taken, a folder of
            shards or of folders with images, or a file of arrays.
        reading: How to read them.
        first: Number of samples to take, from the first on; all if None.
        name: What is expected, and the name of its array: "x" for data, "z" for latents.
        model: What they are for; it may have an event shape.
        label: The label of all samples, for which those of the data are not used.
        dtype: Dtype of floating data.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If it cannot be read, holds integers without a number of levels, latents where
            data are expected, or the reverse, or samples of another shape than the model's.
    """
    found = read_training_data(where, reading, name=name, dtype=dtype)
    if label is not None and (found.classes is not None or _has_labels(where)):
        typer.echo(
            f"Note: --label {label} is the class of all samples, and the labels in {where} are not "
            "used",
            err=True,
        )
    check_event_shape(torch.empty(1, *found.event_shape), model.event_shape, where)
    samples: Any = found.train if found.test is None else found.test
    if not isinstance(samples, Tensor):
        return Subset(samples, range(len(samples))[:first]), found.levels
    x = samples[:first]
    keep = dtype is None or found.levels is not None
    return x if keep else x.to(dtype), found.levels


def read_training_data(
    where: str,
    reading: Reading,
    *,
    name: str = "x",
    labels: bool = False,
    dtype: torch.dtype | None = None,
) -> TrainingData:
    """All of the data, with the labels of a file if asked for, otherwise as :func:`read_data`."""
    array, levels, root = reading.array, reading.levels, reading.root
    if root is not None and where not in FROM_FILES:
        raise ValueError(f"--root is for {', '.join(FROM_FILES)}, got {where}: leave it out")
    if root is None and where in FROM_FILES:
        raise ValueError(f"{where} is read from files: give their folder as --root")
    if where in DATA:
        if array is not None:
            raise ValueError(
                f"--array: the data set {where} has no arrays to choose from: leave it out"
            )
        _check_kind(where, ["x"], name, "'encode' writes latents")
        found = find_data(where, root)
        return replace(found, levels=_levels_of(where, levels, found.levels))
    if Path(where).is_dir():
        return _read_folder(where, array, levels, dtype, name)
    if not Path(where).exists() and not Path(where).suffix:
        raise FileNotFoundError(
            f"no file {where}, and no data set of that name; {nearest_names(where, DATA)}"
        )
    x = _without_loss(
        read_array(where, (name, *KINDS))
        if array is None
        else _read_named("--array", where, (array,))
    )
    if array is None:
        _check_kind(where, array_names(where), name)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"{where} holds an array of shape {tuple(x.shape)}, expected (B, *event) with sizes of "
            "1 or more"
        )
    if levels is None and not x.is_floating_point():
        raise ValueError(
            f"{where} holds {x.dtype}: for images with integer levels give --levels, 256 for bytes"
        )
    if not labels:
        return TrainingData(x, levels=levels)
    label = _read_labels(where, len(x))
    return TrainingData(TensorDataset(x, label), levels=levels, classes=int(label.max()) + 1)


def shape_of(dataset: Tensor | Dataset[Any]) -> tuple[int, ...]:
    """Shape of the first sample, which may be a tuple with its label."""
    sample = dataset[0]
    return tuple((sample[0] if isinstance(sample, tuple) else sample).shape)


def _read_named(option: str, where: str, names: tuple[str, ...]) -> Tensor:
    try:
        return read_array(where, names, strict=True)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _read_labels(where: str, count: int) -> Tensor:
    label = _read_named("--labels", where, LABELS)
    if label.shape != (count,) or label.is_floating_point() or int(label.long().min()) < 0:
        raise ValueError(
            f"--labels: {where} should hold, next to its {count} samples, an array 'label' of as "
            f"many integers from 0; got {label.dtype} of shape {tuple(label.shape)}"
        )
    return label.long()


def _has_labels(where: str) -> bool:
    return Path(where).is_file() and not {*array_names(where)}.isdisjoint(LABELS)


def _check_kind(where: str, there: list[str], name: str, hint: str | None = None) -> None:
    """Refuse latents where data are expected, and the reverse."""
    for other in KINDS:
        if other in there and name not in there:
            raise ValueError(
                f"{where} holds {KINDS[other]}, and {KINDS[name]} are expected: "
                f"{hint or f'give --array {other} if that is meant'}"
            )


def _without_loss(x: Tensor) -> Tensor:
    """The same numbers in another dtype for those that are only stored: float16 and bool."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x.to(torch.uint8) if x.dtype == torch.bool else x


def _read_folder(
    where: str, array: str | None, levels: int | None, dtype: torch.dtype | None, name: str
) -> TrainingData:
    """Shards if there are any, else images, and their levels."""
    try:
        shards = Shards(where, name=array, dtype=dtype)
        if array is None:
            _check_kind(where, [shards.name], name)
        return TrainingData(shards, levels=levels)
    except FileNotFoundError as no_shards:
        if array is not None:
            raise ValueError(
                f"--array: {no_shards}, and images have no names: leave it out"
            ) from no_shards
        try:
            images = image_folder(where)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{no_shards}; and {error}") from error
        known = _levels_of(where, levels, images.levels)
        return TrainingData(images, levels=known, classes=len(images.classes))


def _levels_of(where: str, given: int | None, known: int | None) -> int | None:
    """Number of levels; a smaller number may be given if the data use only the lower levels."""
    if given is not None and known is not None and given > known:
        raise ValueError(f"--levels {given}: {where} has {known} levels: leave it out")
    return given or known


def read_shape(text: str | None, model: ScoreModel) -> tuple[int, ...]:
    """Shape of one sample, as given or that of the model.

    Raises:
        ValueError: If it is neither given nor known.

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
        why = "the model does not know the shape of a sample" if text is None else f"got {text!r}"
        raise ValueError(f"--shape must be such as 1,8,8: {why}") from error
