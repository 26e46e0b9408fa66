"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same state of torch's global generator."""
    torch.manual_seed(0)
