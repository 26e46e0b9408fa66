"""A description of a run in text and numbers, so that it is never resumed as another."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Any

from sde_models.models.base import Model
from sde_models.models.model_files import SETTINGS_KEY, describe_model
from sde_models.shards.fingerprints import (
    describe,
    describe_data,
    describe_module,
    list_differences,
)
from sde_models.training.settings import Settings

FREE = ("gradient_accumulation_steps", "checkpoint_every", "keep", "data_range")
"""Settings that may change when a run is resumed, since its result does not depend on them."""

FORMAT = 2
"""Format of the description; 1 did not hold all that a run depends on."""

FILE = "model.format"
"""The format of model files, which does not affect a run."""


def describe_run(
    settings: Settings, seed: int, model: Model, data: Any, loss: Any
) -> dict[str, Any]:
    """Describe everything that the result of a run depends on.

    Args:
        settings: Those of the run.
        seed: Seed of the run.
        model: What is trained.
        data: As given to :func:`~sde_models.fit`, described by content.
        loss: What is minimised.

    Returns:
        Text and numbers by name.
    """
    chosen = _without_free(asdict(settings))
    return {
        **chosen,
        "format": FORMAT,
        "seed": seed,
        **_describe_loss(loss),
        "data": describe_data(data),
        **describe_module("model", model, trained=False),
        **_flatten("model", _without_free(_describe_model(model))),
        **{
            f"model.{name}": describe(value, trained=False)
            for part in model.modules()
            for name, value in getattr(part, "bound", {}).items()
        },
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
    # JSON has no tuples: the old text is compared with the one that would be written.
    runs = (there, json.loads(json.dumps(now)))
    differing = list_differences(
        *({name: value for name, value in run.items() if name != FILE} for run in runs)
    )
    if differing:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(differing)}): give the "
            "settings from there to resume it, or choose another folder for a new run, or "
            "overwrite=True (--overwrite) to replace the run there"
        )


def _without_free(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in FREE}


def _describe_loss(loss: Any) -> dict[str, str]:
    """A loss, and each argument that ``functools.partial`` has set, as settings of their own."""
    parts = {"loss": loss}
    if isinstance(loss, partial):
        given = {f"loss.{name}": value for name, value in loss.keywords.items()}
        parts = {"loss": partial(loss.func, *loss.args), **given}
    return {name: describe(part, trained=False) for name, part in parts.items()}


def _describe_model(model: Model) -> dict[str, Any]:
    try:
        return describe_model(model)  # type: ignore[arg-type]
    except TypeError:  # classes of others
        return {}


def _flatten(prefix: str, nested: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, dict)
        flat |= _flatten(f"{prefix}.{name}", value) if inner else {f"{prefix}.{name}": value}
    return flat
