"""The version, where the command line finds it without loading the library."""

__version__ = "0.1.0"
