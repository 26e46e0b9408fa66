"""Solvers that choose their steps, for each sample, by an estimate of the error."""
