"""Solvers that use the current state only."""
