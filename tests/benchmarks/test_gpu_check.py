"""The check for machines with a GPU, tried where there is none."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the programs be imported, and leaves the threads of torch alone."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def run(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: str) -> int:
    """Exit status of a program."""
    monkeypatch.setattr("sys.argv", [f"{program}.py", *arguments])
    try:
        return int(importlib.import_module(program).main() or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("program", ["check_gpu", "gpu"])
def test_without_a_gpu_it_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, program) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: torch finds no GPU with CUDA here")
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.usefixtures("benchmarks")
def test_the_benchmark_measures_every_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In tiny sizes."""
    pytest.importorskip("diffusers")
    given = "--device", "cpu", "--smoke", "--rounds", "1", "--seconds", "300"
    assert run(monkeypatch, "gpu", *given, "--out", str(tmp_path)) == 0
    content: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    assert content["left_out"] == {}
    parts = {row["part"] for row in content["rows"]}
    assert parts == {"sampling", "likelihood", "faster", "training"}
    for row in content["rows"]:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    table = (tmp_path / "gpu.md").read_text()
    assert all(row["what"] in table for row in content["rows"])
    assert (tmp_path / "gpu.png").stat().st_size > 1000


@pytest.mark.usefixtures("benchmarks")
def test_parts_for_which_there_is_no_time_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    given = "--device", "cpu", "--smoke", "--seconds", "1"
    assert run(monkeypatch, "gpu", *given, "--out", str(tmp_path)) == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["rows"] == []
    assert content["left_out"]["likelihood"] == "no time was left for it"
