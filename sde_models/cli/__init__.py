"""The command line ``sde-models``: each command is a call into the library."""

# Importing a command adds it to the application; the order is that of the help.
from sde_models.cli import train, sample, encode, decode, log_prob, solvers, demo  # noqa: F401, I001
from sde_models.cli.application import app

__all__ = ["app"]
