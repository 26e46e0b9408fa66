"""Groups of options that several commands take, each defined once as a dataclass.

A command with a parameter of such a dataclass takes its fields as options, in the place of that
parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from sde_models.cli import options as o


@dataclass(frozen=True)
class Control:
    """Options for the steps of a solver."""

    steps: o.Steps = None
    grid: o.GridName = None
    rtol: o.Rtol = None
    atol: o.Atol = None
    max_steps: o.MaxSteps = None

    def given(self) -> dict[str, Any]:
        """Keyword arguments of a function: the options that were given."""
        return o.given(**asdict(self))


@dataclass(frozen=True)
class Running:
    """Options for where and how a command runs; the application reads config and debug."""

    device: o.Device = "cpu"
    dtype: o.Dtype = None
    progress: o.Progress = True
    overwrite: o.Overwrite = False
    config: o.Config = None
    debug: o.Debug = False


def spell_out(function: Callable[..., None]) -> Callable[..., None]:
    """The same function, with the fields of its dataclass parameters as parameters.

    Example:
        >>> def work(n: int, control: Control) -> None:
        ...     print(n, control.given())
        >>> spell_out(work)(n=3, steps=10, grid=None, rtol=None, atol=None, max_steps=None)
        3 {'steps': 10}
        >>> list(signature(spell_out(work)).parameters)
        ['n', 'steps', 'grid', 'rtol', 'atol', 'max_steps']
    """
    bare = signature(function, eval_str=True)
    groups = {
        name: signature(parameter.annotation, eval_str=True).parameters
        for name, parameter in bare.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }

    @wraps(function)
    def spelt_out(**options: Any) -> None:
        for name, fields in groups.items():
            kind = bare.parameters[name].annotation
            options[name] = kind(**{field: options.pop(field) for field in fields})
        function(**options)

    parameters = [
        field.replace(kind=Parameter.KEYWORD_ONLY)
        for parameter in bare.parameters.values()
        for field in groups.get(parameter.name, {"": parameter}).values()
    ]
    spelt_out.__signature__ = bare.replace(parameters=parameters)  # type: ignore[attr-defined]
    return spelt_out
