"""The command line is thin: what it hands on, what it prints, how it fails."""

from __future__ import annotations

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

    def run_demo(out: Path, **arguments: Any) -> dict[str, Any]:
        asked.append({"out": out, **arguments})
        return METRICS

    monkeypatch.setattr(cli, "run_demo", run_demo)
    monkeypatch.setattr(cli, "summary", lambda metrics: f"figures {metrics['any']}")
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


def test_demo_defaults_to_the_full_work(calls: list[dict[str, Any]]) -> None:
    assert invoke("demo").exit_code == 0
    assert calls == [
        {"out": Path("runs/demo"), "seed": 0, "settings": DemoSettings(), "progress": True}
    ]


def test_a_folder_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("demo", "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert "--out" in words
    assert "there is a file of that name" in words


def test_solvers_prints_the_table() -> None:
    result = invoke("solvers")
    assert result.exit_code == 0
    assert result.stdout == f"{solvers()}\n"


@pytest.mark.parametrize("words", [(), ("--help",), ("demo", "--help"), ("solvers", "-h")])
def test_help_is_there(words: tuple[str, ...]) -> None:
    result = invoke(*words)
    assert "Usage" in result.output
    if words[:1] == ("demo",):
        assert "sde-models demo --quick" in " ".join(result.output.split())


@pytest.mark.parametrize("words", [("dmeo",), ("demo", "--sed", "1"), ("demo", "--seed", "-1")])
def test_mistakes_are_usage_errors(words: tuple[str, ...]) -> None:
    assert invoke(*words).exit_code == 2
