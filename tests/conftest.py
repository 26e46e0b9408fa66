"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def _checked_distributions() -> Iterator[None]:
    """Keep the checks of torch.distributions on: the first use of torch.compile turns them off."""
    yield
    Distribution.set_default_validate_args(True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same state of torch's global generator."""
    torch.manual_seed(0)
