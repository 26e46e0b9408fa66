"""Solvers that use one state and know no history."""
