"""The command line ``sde-models``: each command is a call into the library.

A command imports what it works with when it is called, so that help and mistakes take no time.
"""

# Importing a command adds it to the application; the order is that of the help.
from sde_models.cli import train, sample, encode, decode, log_prob, solvers, demo  # noqa: F401, I001
from sde_models.cli.application import app

__all__ = ["app"]
