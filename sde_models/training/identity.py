"""A description of a run in text and numbers, so that it is never resumed as another."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import Tensor

from sde_models.models.base import Model
from sde_models.models.model_files import SETTINGS_KEY, describe_model
from sde_models.shards.fingerprints import describe, list_differences
from sde_models.training.settings import Settings

FREE = ("gradient_accumulation_steps", "checkpoint_every", "keep", "data_range")
"""Settings that may change when a run is resumed, since its result does not depend on them."""

FILE = "model.format"
"""The format of model files does not affect a run, and older runs have an older one."""


def describe_run(
    settings: Settings, seed: int, model: Model, data: Any, loss: Any
) -> dict[str, Any]:
    """Describe everything that the result of a run depends on.

    Args:
        settings: Those of the run.
        seed: Seed of the run.
        model: What is trained.
        data: As given to :func:`~sde_models.fit`. A tensor is described by its contents, a
            dataclass by its fields, another dataset by class and length, a function by its name.
        loss: What is minimised.

    Returns:
        Text and numbers by name.
    """
    chosen = _without_free(asdict(settings))
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return {
        **chosen,
        "seed": seed,
        "loss": describe(loss),
        "data": _describe_data(data),
        **_flatten("model", _without_free(_describe_model(model))),
        "model.weights": ", ".join(f"{name} {shape}" for name, shape in weights.items()),
        "model.dtype": str(model.dtype),
    }


def metadata_of(model: Model) -> dict[str, str]:
    """Settings from which :func:`~sde_models.load_model` rebuilds the model, if it can."""
    try:
        return {SETTINGS_KEY: json.dumps(describe_model(model))}  # type: ignore[arg-type]
    except TypeError:
        return {}


def check_same_run(there: dict[str, Any], now: dict[str, Any], folder: Any) -> None:
    """Refuse to resume a run as another.

    Raises:
        ValueError: With each setting that differs, as it was and as it is.
    """
    # JSON has no tuples: the old text is compared with the one that would be written. An earlier
    # version had fewer settings; the new ones are None where they change nothing.
    runs = (there, json.loads(json.dumps(now)))
    chosen = ({k: v for k, v in run.items() if k != FILE and v is not None} for run in runs)
    differing = list_differences(*chosen)
    if differing:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(differing)}): give the "
            "settings from there to resume it, or choose another folder for a new run"
        )


def _without_free(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in FREE}


def _describe_model(model: Model) -> dict[str, Any]:
    try:
        return describe_model(model)  # type: ignore[arg-type]
    except TypeError:  # classes of others
        return {"class": type(model).__name__, "layout": " ".join(repr(model).split())}


def _describe_data(data: Any) -> str:
    if isinstance(data, Tensor):
        return describe(data)
    if is_dataclass(data):
        return f"{type(data).__name__} {describe(vars(data))}"
    if hasattr(data, "__len__"):
        return f"{type(data).__name__} of length {len(data)}"
    return getattr(data, "__qualname__", type(data).__name__)


def _flatten(prefix: str, nested: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, dict)
        flat |= _flatten(f"{prefix}.{name}", value) if inner else {f"{prefix}.{name}": value}
    return flat
