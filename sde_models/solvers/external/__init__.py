"""Solvers of other libraries: torchdiffeq, torchsde, SciPy and diffusers."""
