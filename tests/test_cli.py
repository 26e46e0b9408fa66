"""The command line is thin: what it hands on, what it prints, how it fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sde_models import cli
from sde_models.demo import DemoSettings
from sde_models.solvers import solvers

METRICS: dict[str, Any] = {"any": 1}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the work, and note what it was asked."""
    asked = []

    def run_demo(out: os.PathLike[str], **arguments: Any) -> dict[str, Any]:
        asked.append({"out": Path(out), **arguments})
        return METRICS

    module = sys.modules["sde_models.cli.demo"]
    monkeypatch.setattr(module, "run_demo", run_demo)
    monkeypatch.setattr(module, "summary", lambda metrics: f"figures {metrics['any']}")
    return asked


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


def test_demo_hands_on_its_options(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    result = invoke("demo", "--out", str(tmp_path), "--seed", "7", "--quick", "--no-progress")
    assert result.exit_code == 0
    assert calls == [
        {"out": tmp_path, "seed": 7, "settings": DemoSettings.quick(), "progress": False}
    ]
    assert "figures 1" in result.stdout
    assert str(tmp_path / "report.html") in result.stdout
    config = tmp_path / "config.json"
    assert json.loads(config.read_text()) == {
        "made_by": "sde-models", "command": "demo", "out": str(tmp_path), "seed": 7, "quick": True
    }  # fmt: skip
    assert invoke("demo", "--config", str(config), "--no-progress").exit_code == 0
    assert calls[0] == calls[1]


def test_demo_defaults_to_the_full_work(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("demo").exit_code == 0
    assert calls == [
        {"out": Path("runs/demo"), "seed": 0, "settings": DemoSettings(), "progress": True}
    ]


def test_a_folder_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("demo", "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "cannot be written to: there is a file of that name; choose another folder" in line


def test_solvers_prints_the_table() -> None:
    result = invoke("solvers")
    assert result.exit_code == 0
    assert result.stdout == f"{solvers()}\n"


COMMANDS = ["sample", "encode", "decode", "log-prob", "solvers", "demo"]


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_command(words: tuple[str, ...]) -> None:
    output = invoke(*words).output
    assert "Usage" in output
    assert all(f"\n  {command} " in output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_examples(command: str) -> None:
    output = invoke(command, "--help").output
    assert "Usage" in output
    assert f"Examples:\n    sde-models {command}" in output


@pytest.mark.parametrize("words", [("dmeo",), ("demo", "--sed", "1"), ("demo", "--seed", "-1")])
def test_mistakes_are_usage_errors(words: tuple[str, ...]) -> None:
    assert invoke(*words).exit_code == 2
