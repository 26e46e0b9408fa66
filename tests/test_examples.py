"""The examples run as they stand, at little work."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from sde_models.checkpoints import load_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_mixture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("mixture.py", "--samples", "20", "--solver", "ode:dopri8", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "ode:dopri8" in shown
    assert "round-trip error" in shown


def test_denoising_sigma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score of the data wants less noise than sampling does."""
    run_example("denoising_sigma.py", "--sigmas", "0.1", "0.4", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "score of the data: sigma=0.1; for sampling: sigma=0.4" in shown


def test_digits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--steps", "20", "--width", "16", "--images", "3", "--out", str(tmp_path / "model"))
    run_example("digits.py", *words, monkeypatch=monkeypatch)
    assert "test bits/dim" in capsys.readouterr().out
    assert load_model(tmp_path / "model").event_shape == (1, 8, 8)


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_example(name, "--help", monkeypatch=monkeypatch)
    assert "--seed" in capsys.readouterr().out
