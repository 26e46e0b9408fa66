"""The command line is thin: what it hands on, what it prints, how it fails."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import sde_models
from sde_models import cli, demo
from sde_models._utils.errors import SolveError
from sde_models.cli.training_options import Fitting
from sde_models.data import DATA
from sde_models.demo import DemoSettings
from sde_models.losses import WEIGHTINGS
from sde_models.losses.registry import OBJECTIVES
from sde_models.losses.times import TIME_SAMPLERS
from sde_models.models.predictions import PREDICTIONS
from sde_models.nn import NETWORKS
from sde_models.sdes import SDES
from sde_models.solvers import list_solvers

METRICS: dict[str, Any] = {"any": 1}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the work, and note what it was asked."""
    asked = []

    def run_demo(out: os.PathLike[str], **arguments: Any) -> dict[str, Any]:
        asked.append({"out": Path(out), **arguments})
        return METRICS

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setattr(demo, "summary", lambda metrics: f"figures {metrics['any']}")
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
    assert result.stdout == f"{list_solvers()}\n"


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


def test_the_names_in_the_help_are_those_of_the_tables() -> None:
    application: Any = typer.main.get_command(cli.app)
    help_of = {param.name: param.help for param in application.commands["train"].params}
    tables = {
        "data": DATA, "sde": SDES, "network": NETWORKS, "prediction": PREDICTIONS,
        "objective": OBJECTIVES, "weighting": WEIGHTINGS, "times": TIME_SAMPLERS,
    }  # fmt: skip
    for name, table in tables.items():
        assert re.search(rf"(: |^One of ){re.escape(', '.join(table))}[.;]", help_of[name]), name


def test_training_has_the_defaults_of_fit() -> None:
    known = inspect.signature(sde_models.fit).parameters
    for field in fields(Fitting):
        assert field.default == known[field.name].default, field.name


def python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with this checkout."""
    root = str(Path(__file__).parents[2])
    strict = ("-W", "error")
    return subprocess.run(
        [sys.executable, *strict, "-c", textwrap.dedent(source)],
        env=os.environ | {"PYTHONPATH": root} | environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


HEAVY = ("torch", "numpy", "scipy", "matplotlib", "sklearn", "torchvision", "accelerate", "tqdm")


def test_help_and_mistakes_load_nothing_that_takes_time(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("stepz = 3")
    config = ("--config", str(tmp_path / "bad.toml"))
    asked = [
        (), ("--help",), ("--version",), ("smaple",), ("--stepz",),
        *((command, "--help") for command in ("train", *COMMANDS)),
        *((command, "--stepz", "3") for command in ("train", *COMMANDS)),
        ("sample", "model", "--n", "many", "--out", "x"), ("sample",), ("sample", "m", *config),
    ]  # fmt: skip
    done = python(f"""
        import sys
        from sde_models.cli import app
        for words in {asked!r}:
            try:
                app(list(words))
            except SystemExit as end:
                assert end.code == (0 if {{"--help", "--version"}} & {{*words}} else 2), words
        print(sorted({{*{HEAVY!r}}} & {{*sys.modules}}))
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "did you mean 'steps'" in done.stderr


def test_completion_loads_nothing_that_takes_time() -> None:
    done = python(
        f"""
        import atexit, sys
        atexit.register(lambda: print(sorted({{*{HEAVY!r}}} & {{*sys.modules}})))
        from sde_models.cli import app
        app(prog_name="sde-models")
        """,
        _SDE_MODELS_COMPLETE="complete_bash", COMP_WORDS="sde-models sa", COMP_CWORD="1",
    )  # fmt: skip
    assert done.stdout.split() == ["sample", "[]"], done.stderr


def test_the_package_is_as_if_it_were_loaded_at_once() -> None:
    """Whichever is imported first."""
    done = python("""
        import sys
        import sde_models as sm
        import sde_models.solvers.registry
        from sde_models import VPSDE, data, list_solvers, solvers
        assert list_solvers is solvers.list_solvers is sm.solvers.registry.list_solvers
        assert sys.modules["sde_models.solvers"].solve is sm.solve
        assert sm.training.fit is sm.fit and sm.models.load_model is sm.load_model
        assert VPSDE is sm.sdes.VPSDE and data is sys.modules["sde_models.data"]
        everything = {}
        exec("from sde_models import *", everything)
        assert {*sm.__all__} <= {*everything} and {*sm.__all__} <= {*dir(sm)}
        assert not hasattr(sm, "nosuch") and not hasattr(sm, "__nosuch__")
        try:
            from sde_models import nosuch
        except ImportError as error:
            assert "cannot import name 'nosuch' from 'sde_models'" in str(error)
    """)
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{sde_models.__version__}"' in project
    assert invoke("--version").stdout == f"sde-models {sde_models.__version__}\n"


# How a command ends.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("said"), 2), (TypeError("said"), 2), (ImportError("said"), 2),
        (FileNotFoundError("said"), 2), (FileExistsError("said"), 2),
        (PermissionError(errno.EACCES, "said"), 2), (NotADirectoryError("said"), 2),
        (OSError(errno.ENOSPC, "said"), 1), (OSError(errno.EDQUOT, "said"), 1),
        (OSError(errno.EIO, "said"), 1), (OSError("said"), 1), (BlockingIOError("said"), 1),
        (RuntimeError("said"), 1), (FloatingPointError("said"), 1), (MemoryError("said"), 1),
        (torch.OutOfMemoryError("said"), 1), (SolveError("said", t=0.0, x=None, nfe=0), 1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_was_asked_wrongly_ends_with_2_and_work_that_failed_with_1(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    result = invoke("demo", "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stderr) == (code, "Error: said\n")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_command_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupt)
    result = invoke("demo", "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_output_that_nobody_takes() -> None:
    """A full disk under the standard output is work that failed; so is a reader that has gone."""
    words = [sys.executable, "-m", "sde_models.cli", "solvers"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
