"""The application that the commands are added to, and the common behaviour of commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sde_models._version import __version__

app = typer.Typer(
    help="Score-based generative models as differential equations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MISTAKES = (
    ValueError, TypeError, ImportError,
    FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip
"""Errors of a wrong call."""

FAILURES = (RuntimeError, FloatingPointError, MemoryError, OSError)
"""Errors of work that failed."""


def print_version(asked: bool) -> None:
    """Print the version and end, if asked for."""
    if asked:
        typer.echo(f"sde-models {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


class Command(TyperCommand):
    """A command that prints an error in one line, or with ``--debug`` in full.

    A wrong call ends with exit code 2, work that failed (a solve, a lack of memory or of room on
    the disk, a loss that is no longer finite) with 1, and Ctrl-C with 130.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("Stopped.", err=True)
            raise typer.Exit(130) from error
        except MISTAKES + FAILURES as error:
            # For a closed pipe, as in `sde-models solvers | head`, click makes exit code 1.
            own = isinstance(error, typer.Exit | typer.Abort | BrokenPipeError)
            if own or ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {_in_one_line(error)}", err=True)
            raise typer.Exit(2 if isinstance(error, MISTAKES) else 1) from error


def _in_one_line(error: BaseException) -> str:
    ours = isinstance(error, OSError) and error.filename is None and error.strerror
    said = " ".join(str(ours or error).split()) or type(error).__name__
    return "; ".join([said, *getattr(error, "__notes__", ())])


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of the application.

    The fields of a parameter that is a dataclass become options, in the place of the parameter.

    Args:
        *examples: Examples for the end of its help.
    """
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)
    return lambda function: app.command(cls=Command, epilog=epilog)(spell_out(function))


def spell_out(function: Callable[..., None]) -> Callable[..., None]:
    """The same function, with the fields of its dataclass parameters as parameters.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Control:
        ...     steps: int
        ...     rtol: float
        >>> def work(n: int, control: Control) -> None:
        ...     print(n, control)
        >>> spell_out(work)(n=3, steps=10, rtol=0.1)
        3 Control(steps=10, rtol=0.1)
        >>> list(signature(spell_out(work)).parameters)
        ['n', 'steps', 'rtol']
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
