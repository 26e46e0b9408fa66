"""Devices that these tests run on: the CPU, which is held against itself, and those that are here.

``make check-gpu`` runs them on a machine with CUDA.
"""

from __future__ import annotations

import pytest
import torch

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU here; where there is one: make check-gpu"
)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
DEVICES += ["mps"] if torch.backends.mps.is_available() else []


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """One device after the other."""
    found: str = request.param
    return found
