"""Solvers that use the estimates of earlier nodes, given by tables of weights."""
