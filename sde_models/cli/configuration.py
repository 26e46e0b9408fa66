"""Options read from a file, and written to a file, so that a result can be reproduced."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import typer

from sde_models._utils.errors import nearest_names

CONFIG = "config.json"
"""Name of that file in the folder of a result, and the end of its name next to a file."""

MADE_BY = {"made_by": "sde-models"}
"""The first entry of a file of options that was written here."""

HOW_TO_RUN = frozenset({"config", "debug", "overwrite", "progress"})
"""Options that a result does not depend on."""


def load_config(ctx: typer.Context, config: Path | None) -> Path | None:
    """Take options from a file that are not on the command line.

    Raises:
        typer.BadParameter: If the file cannot be read, or holds an unknown option.
    """
    if config is None:
        return None
    options = {name.replace("-", "_"): value for name, value in _read(config).items()}
    options.pop("made_by", None)
    command = options.pop("command", ctx.info_name)
    if command != ctx.info_name:
        raise typer.BadParameter(
            f"{config} is for 'sde-models {command}', got 'sde-models {ctx.info_name}'"
        )
    known = {str(param.name) for param in ctx.command.params} - {"config"}
    for name in options:
        if name not in known:
            raise typer.BadParameter(
                f"{config} has {name!r}, which is no option here; {nearest_names(name, known)}"
            )
    ctx.default_map = {name: value for name, value in options.items() if value is not None}
    return config


def config_content(ctx: typer.Context, **settled: Any) -> bytes:
    """Every option of a command with its final value, as a file for ``--config``.

    Args:
        ctx: Context of the command.
        **settled: Options whose values the command chose, by name.
    """
    options = {str(p.name): ctx.params.get(str(p.name)) for p in ctx.command.params} | settled
    kept = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name not in HOW_TO_RUN and value is not None
    }
    content = json.dumps({**MADE_BY, "command": ctx.info_name, **kept}, indent=2)
    return f"{content}\n".encode()


def is_config_of(path: Path, out: Path) -> bool:
    """Whether a file is one of :func:`config_content`, for a result of this name."""
    try:
        found = dict(json.loads(path.read_bytes()))
        return found.items() >= MADE_BY.items() and Path(found["out"]).name == out.name
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _read(path: Path) -> dict[str, Any]:
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise typer.BadParameter(f"{path} must end in .toml or .json")
    try:
        found = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path} must hold options by name, got a {type(found).__name__}")
    return found
