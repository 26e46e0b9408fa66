"""One file that holds a score model: weights and the settings that rebuild it.

The file is in the safetensors format. Its metadata hold the settings as JSON; nothing in it is
ever unpickled or run.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from sde_models.models import ScoreModel
from sde_models.nn import MixingNetwork, ResidualNetwork, UNet
from sde_models.predictions import EDM, PREDICTIONS
from sde_models.sdes import VESDE, VPSDE, CosineSDE, FlowMatchingSDE, SubVPSDE
from sde_models.whole_files import write_whole

FORMAT = 1
SETTINGS_KEY = "sde_models"

SDES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (CosineSDE, FlowMatchingSDE, SubVPSDE, VESDE, VPSDE)
}
NETWORKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (MixingNetwork, ResidualNetwork, UNet)
}


def save_model(path: str | os.PathLike[str], model: ScoreModel) -> None:
    """Write a score model to one safetensors file, so that :func:`load_model` rebuilds it.

    The file is written under a temporary name beside ``path`` and then renamed: at no moment is
    there half a file.

    Args:
        path: File to write, by custom ending in ``.safetensors``.
        model: A score model whose SDE and network are classes of this library.

    Raises:
        TypeError: If the model, its SDE or its network is of another class, which this library
            could not rebuild.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=16, depth=1), sm.VPSDE())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/model.safetensors", model)
        ...     load_model(f"{folder}/model.safetensors").sde
        VPSDE(beta_min=0.1, beta_max=20, t_min=1e-05)
    """
    metadata = {SETTINGS_KEY: json.dumps(describe_model(model))}
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    write_whole(path, save(tensors, metadata))


def load_model(path: str | os.PathLike[str]) -> ScoreModel:
    """Rebuild a score model from a file that :func:`save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model on the CPU, in evaluation mode, with the weights' own dtypes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, was written by something else, or by a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged: {error}") from error
    if SETTINGS_KEY not in metadata:
        raise ValueError(
            f"{path} holds no settings of sde_models: it was not written by save_model. Build the "
            "model yourself and read the weights by safetensors.torch.load_model"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn only to be replaced
            model = build_model(json.loads(metadata[SETTINGS_KEY]))
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the settings or weights in {path} do not fit: {error}") from error
    return model.eval()


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """Return the settings of a score model, from which :func:`build_model` makes it again.

    Raises:
        TypeError: As in :func:`save_model`.
    """
    if type(model) is not ScoreModel:
        raise TypeError(f"save_model writes a ScoreModel, got {type(model).__name__}")
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
    if settings.get("format") != FORMAT:
        raise ValueError(f"format {settings.get('format')!r} is not known here, only {FORMAT}")
    event_shape = settings["event_shape"]
    return ScoreModel(
        _build(settings["network"], NETWORKS),
        _build(settings["sde"], SDES),
        settings["prediction"],
        preconditioning=settings["preconditioning"],
        event_shape=None if event_shape is None else tuple(event_shape),
        data_range=settings.get("data_range"),  # there are older files without it
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
