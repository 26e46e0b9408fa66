"""One file that holds a score model: weights and the settings that rebuild it.

The file is in the safetensors format. Its metadata hold the settings as JSON and a checksum over
every bit; nothing in it is ever unpickled or run. It holds all parameters and buffers, also those
that are not persistent, each in its own dtype.
"""

from __future__ import annotations

import inspect
import json
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.buffers import copy_buffers, find_buffers, find_transient
from sde_models._utils.integers import check_integers
from sde_models._utils.tensor_files import DamagedError, TensorFile, unpack
from sde_models.models.predictions import EDM, PREDICTIONS
from sde_models.models.score_model import ScoreModel
from sde_models.nn import MixingNetwork, ResidualNetwork, UNet
from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE

FORMAT = 2
"""The format that is written: 2 has a checksum and all buffers; 1 has neither and can be read."""

SETTINGS_KEY = "sde_models"

SDES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (CosineSDE, FlowMatchingSDE, SubVPSDE, VESDE, VPSDE)
}
NETWORKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (MixingNetwork, ResidualNetwork, UNet)
}


def save_model(path: str | os.PathLike[str], model: ScoreModel) -> None:
    """Write a score model to one safetensors file, so that :func:`load_model` rebuilds it.

    The file is written under a temporary name next to ``path`` and then renamed, so that it is
    never incomplete.

    Args:
        path: File to write, usually ending in ``.safetensors``.
        model: A score model whose SDE and network are classes of this library.

    Raises:
        TypeError: If the model, its SDE or its network is of another class, or its layers were
            changed after it was made, so that this library could not rebuild it.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model.safetensors", model)
        ...     load_model(f"{folder}/model.safetensors").sde
        VPSDE(beta_min=0.1, beta_max=20, t_min=1e-05)
    """
    settings, tensors = describe_model(model), find_tensors(model)
    try:
        _check_fit(settings, tensors)
    except ValueError as error:
        raise TypeError(
            f"save_model cannot rebuild this model, whose layers are not those that its class "
            f"makes ({error}): keep its weights by safetensors.torch.save_model and build the "
            "model in your own code"
        ) from error
    atomic_write(path, TensorFile(tensors, {SETTINGS_KEY: json.dumps(settings)}).pack())


def load_model(path: str | os.PathLike[str]) -> ScoreModel:
    """Rebuild a score model from a file that :func:`save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model on the CPU, in evaluation mode, with the dtypes that it was saved in.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, was written by something else, or by a later version.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file in it, as in model.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        file = unpack(path.read_bytes())
    except DamagedError as error:
        _refuse_damaged(path, str(error))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; restore it from a copy") from error
    if SETTINGS_KEY not in file.metadata:
        raise ValueError(
            f"{path} holds no settings of sde_models: it was not written by save_model. Build the "
            "model yourself and read the weights by safetensors.torch.load_model"
        )
    try:
        settings = json.loads(file.metadata[SETTINGS_KEY], parse_constant=_refuse_constant)
        if not isinstance(settings, dict):
            raise ValueError(f"the settings are {settings!r:.40}, no JSON object")
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn only to be replaced
            _check_fit(settings, file.tensors)
            model = build_model(settings)
        _fill(model, file.tensors)
        _check_same(settings, model)
    except UNFIT as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"the settings or weights in {path} do not fit: {why}") from error
    if not file.checked and settings["format"] > 1:
        _refuse_damaged(path, "its checksum is missing")
    if not file.checked:
        warnings.warn(
            f"{path} was written by an earlier version and has no checksum, so damage would not "
            "be noticed: sm.save_model(path, model) writes it anew with one",
            UserWarning,
            stacklevel=2,
        )
    return model.eval()


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """Return the settings of a score model, from which :func:`build_model` makes it again."""
    if type(model) is not ScoreModel:
        made_of_one = isinstance(getattr(model, "model", None), ScoreModel)
        hint = ": save its .model, and make it again after loading" if made_of_one else ""
        raise TypeError(
            f"save_model(path, model) writes a ScoreModel, got {type(model).__name__}{hint}"
        )
    edm = isinstance(model.prediction, EDM)
    names = {cls: name for name, cls in PREDICTIONS.items()}
    return {
        "format": FORMAT,
        "sde": _describe(model.sde, SDES, "SDE"),
        "network": _describe(model.network, NETWORKS, "network"),
        "prediction": None if edm else names[type(model.prediction)],
        "preconditioning": "edm" if edm else None,
        "event_shape": None if model.event_shape is None else list(model.event_shape),
        "data_range": model.data_range,
    }


def build_model(settings: dict[str, Any]) -> ScoreModel:
    """Make a score model from its settings, with fresh weights.

    Raises:
        ValueError: If the settings are of a later version or name an unknown class.
    """
    if settings.get("format") not in range(1, FORMAT + 1):
        raise ValueError(
            f"format {settings.get('format')!r} is not known, expected {FORMAT} or lower: update "
            "sde_models if a later version wrote it"
        )
    event_shape = settings["event_shape"]
    return ScoreModel(
        _build(settings["network"], NETWORKS),
        _build(settings["sde"], SDES),
        settings["prediction"],
        preconditioning=settings["preconditioning"],
        event_shape=None if event_shape is None else check_integers("event_shape", event_shape),
        data_range=settings.get("data_range"),  # there are older files without it
    )


def find_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model file: the state dictionary, and the buffers missing from it."""
    return {**model.state_dict(), **find_transient(model)}


UNFIT = (
    ArithmeticError, AttributeError, KeyError, MemoryError, RecursionError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""Errors that building a model may raise from settings that this library did not write."""


def _check_fit(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Compare names and shapes with those of a model without memory, however large it would be."""
    with torch.device("meta"), _at_most(100 + 10 * len(tensors)):  # constructors replace some
        model = build_model(settings)
    needed = dict(model.state_dict()) if settings["format"] == 1 else find_tensors(model)
    if needed.keys() != tensors.keys():
        names = ", ".join(sorted(needed.keys() ^ tensors.keys())[:3])
        raise ValueError(f"the model and the tensors of the file differ in {names}")
    for name, value in needed.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the model and "
                f"{tuple(tensors[name].shape)} in the file"
            )


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop a constructor that makes more parameters than that, as one of forged depth would."""
    left, thread = iter(range(count)), threading.get_ident()

    def note(*_: Any) -> None:
        if threading.get_ident() == thread and next(left, None) is None:
            raise ValueError("the model has many times the tensors of the file")

    hook = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()


def _fill(model: ScoreModel, tensors: dict[str, Tensor]) -> None:
    """Give a model its tensors; buffers that an early file lacks follow the dtype of the rest."""
    transient = find_transient(model)
    kept = {name: value for name, value in tensors.items() if name not in transient}
    model.load_state_dict(kept, assign=True)
    buffers = dict(find_buffers(model))
    for name, value in transient.items():
        buffers[name] = tensors.get(name, value.to(model.dtype)), False
    copy_buffers(buffers, model)


def _check_same(settings: dict[str, Any], model: ScoreModel) -> None:
    """Refuse settings that a constructor has read as different ones."""
    made = json.loads(json.dumps(describe_model(model)))
    names = settings.keys() | (set() if settings["format"] == 1 else made.keys())
    for name in sorted(names - {"format"}):
        given, has = settings.get(name, "not given"), made.get(name, "not known")
        if given is None and name == "event_shape":  # an older file, and the network knows it
            continue
        if given != has:
            raise ValueError(f"{name} is {given!r} in the settings and {has!r} in the model")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the settings hold {name}")


def _refuse_damaged(path: Path, why: str) -> NoReturn:
    raise DamagedError(
        f"{path} is damaged ({why}): restore it from a copy, or save the model again"
    )


def _describe(module: nn.Module, known: dict[str, type[nn.Module]], what: str) -> dict[str, Any]:
    """Class and arguments of a module that keeps each argument under its own name."""
    cls = type(module)
    if known.get(cls.__name__) is not cls:
        raise TypeError(
            f"save_model can rebuild only a {what} of this library ({', '.join(known)}), got "
            f"{cls.__name__}: keep its weights by safetensors.torch.save_model and build the "
            "model in your own code"
        )
    arguments = {name: getattr(module, name) for name in inspect.signature(cls).parameters}
    return {"class": cls.__name__, "arguments": arguments}


def _build(settings: dict[str, Any], known: dict[str, type[nn.Module]]) -> Any:
    if settings["class"] not in known:
        raise ValueError(f"unknown class {settings['class']!r}; known: {', '.join(known)}")
    return known[settings["class"]](**settings["arguments"])
