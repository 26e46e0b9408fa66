"""The check for machines with a GPU, tried where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, f"benchmarks/{program}.py", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("program", ["check_gpu", "gpu"])
def test_without_a_gpu_it_says_so_and_ends(program: str) -> None:
    ended = run(program)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: torch finds no GPU with CUDA here")
    assert ended.stderr.count("\n") == 1
    assert not ended.stdout


def test_the_benchmark_measures_every_part(tmp_path: Path) -> None:
    """In tiny sizes; what takes longest, the compiler, is not asked to do much."""
    pytest.importorskip("diffusers")
    ended = run(
        "gpu", "--device", "cpu", "--smoke", "--rounds", "1", "--seconds", "300",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    content: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    assert content["left_out"] == {}
    parts = {row["part"] for row in content["rows"]}
    assert parts == {"sampling", "likelihood", "faster", "training"}
    for row in content["rows"]:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    table = (tmp_path / "gpu.md").read_text()
    assert all(row["what"] in table for row in content["rows"])
    assert (tmp_path / "gpu.png").stat().st_size > 1000


def test_parts_for_which_there_is_no_time_are_named(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    ended = run("gpu", "--device", "cpu", "--smoke", "--seconds", "1", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["rows"] == []
    assert content["left_out"]["likelihood"] == "no time was left for it"
