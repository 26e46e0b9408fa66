"""Langevin dynamics at fixed noise levels, alone and as correctors."""
