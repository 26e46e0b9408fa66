"""Names that docstring examples may use without importing them."""

from typing import Any

import pytest
import torch

import sde_models as sm


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(sm=sm, torch=torch)
