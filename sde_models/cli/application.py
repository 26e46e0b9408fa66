"""The application that the commands are added to, and what all of them do alike."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

app = typer.Typer(
    help="Score-based generative models as differential equations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MISTAKES = (OSError, ValueError, TypeError, ImportError)
FAILURES = (RuntimeError, FloatingPointError)


class Command(TyperCommand):
    """A command that tells what went wrong in one line, or with ``--debug`` in full.

    What was asked wrongly ends with exit code 2, work that failed (a solve, a lack of memory, a
    loss that is no longer finite) with 1.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MISTAKES + FAILURES as error:
            if ctx.params.get("debug") or isinstance(error, typer.Exit | typer.Abort):
                raise
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1 if isinstance(error, FAILURES) else 2) from error


def examples(*lines: str) -> str:
    """Examples for the end of a help, left as they are broken into lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
