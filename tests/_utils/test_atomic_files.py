"""Every file of the library is written by one function: completely, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_models as sm
from sde_models._utils.atomic_files import atomic_write
from sde_models.demo.report import Page
from sde_models.shards.npz import write_npz

EXACT = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
NETWORK = sm.nn.ResidualNetwork((2,), width=8, depth=1)

WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: atomic_write(path, b"content"),
    "archive": lambda path: write_npz(path, {"x": [np.zeros((1, 2))]}, 1),
    "model": lambda path: sm.save_model(path, sm.ScoreModel(NETWORK, sm.VPSDE())),
    "grid": lambda path: sm.adapt_grid(EXACT, samples=2, tol=0.1).save(path),
    "page": Page("title").write,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write(path)
    assert path.read_bytes() == b"earlier"
    write(path)
    assert path.read_bytes() != b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_missing_folder_is_an_error(write: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing to write \w+"):
        write(tmp_path / "missing" / "file")
