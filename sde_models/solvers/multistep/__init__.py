"""Solvers that use the estimates of earlier nodes: tables of weights, and who reads them."""
