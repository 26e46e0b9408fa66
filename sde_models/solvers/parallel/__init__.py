"""Solvers that work on many nodes at once."""
