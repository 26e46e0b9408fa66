"""Where standard error is no terminal, a bar is about ten lines; on a terminal it is tqdm's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sde_models as sm
from sde_models._utils.progress_bars import PARTS, open_bar

MODEL = sm.GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], 0.3).score_model(sm.VPSDE())
NETWORK = sm.ScoreModel(sm.nn.ResidualNetwork((2,), width=8, depth=1), sm.VPSDE())
MOST = PARTS + 2
"""At 0%, at every tenth, and where it ended."""


class Terminal(io.StringIO):
    """Standard error that a person sees."""

    def isatty(self) -> bool:
        return True


def listen(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def shares(said: str) -> list[int]:
    """The percentages in lines, of which each line has one."""
    return [int(re.findall(r"(\d+)%", line)[0]) for line in said.splitlines()]


def work(name: str, folder: Path) -> object:
    x = torch.zeros(60, 2)
    few = {"solver": "ddim", "steps": 2}
    works: dict[str, Callable[[], object]] = {
        "fixed": lambda: sm.sample(MODEL, (5, 2), "ddim", steps=300, progress=True),
        "adaptive": lambda: sm.encode(MODEL, x, "ode:bosh3", progress=True),
        "own steps": lambda: sm.sample(MODEL, (50, 2), "adaptive-sde", progress=True),
        "density": lambda: sm.log_prob(MODEL, x, progress=True),
        "fit": lambda: sm.fit(NETWORK, x, batch_size=2, steps=50),
        "evaluate": lambda: sm.evaluate(MODEL, x, folder, chunk=3, **few),
        "sample": lambda: sm.sample_to_folder(MODEL, 60, folder, chunk=3, **few),
        "encode": lambda: sm.encode_to_folder(MODEL, x, folder, chunk=3, **few),
    }
    return works[name]()


WORKS = ["fixed", "adaptive", "own steps", "density", "fit", "evaluate", "sample", "encode"]
every_work = pytest.mark.parametrize("name", WORKS)


@every_work
def test_no_terminal_few_lines(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(monkeypatch, io.StringIO())
    work(name, tmp_path / "out")
    said = stream.getvalue()
    assert "\r" not in said
    assert said.endswith("\n")
    found = shares(said)
    assert 2 <= len(found) <= MOST
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 100)


@pytest.mark.parametrize("name", ["adaptive", "fit"])
def test_a_terminal_has_a_bar_that_moves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = listen(monkeypatch, Terminal())
    work(name, tmp_path / "out")
    assert stream.getvalue().count("\r") > 1
    assert "100%" in stream.getvalue()


def test_lines_come_at_each_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(monkeypatch, io.StringIO())
    with open_bar(total=1000, initial=250, mininterval=0) as bar:
        for _ in range(750):
            bar.update()
            bar.set_postfix(loss=1.0)  # which asks for the bar to be drawn
    assert shares(stream.getvalue()) == [25, 30, 40, 50, 60, 70, 80, 90, 100]


def test_an_unknown_total_has_a_line_for_each_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(monkeypatch, io.StringIO())
    with open_bar(unit=" steps", mininterval=0) as bar:
        for _ in range(1000):
            bar.update()
    counts = [int(line.split()[0]) for line in stream.getvalue().splitlines()]
    assert counts == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]


def test_what_fails_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(monkeypatch, io.StringIO())
    with pytest.raises(sm.StepLimitError):
        sm.sample(MODEL, (5, 2), "rk-batch", max_steps=3, progress=True)
    assert 0 < shares(stream.getvalue())[-1] < 90


def test_nothing_is_said_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = listen(monkeypatch, io.StringIO())
    sm.sample(MODEL, (5, 2), "ddim", steps=3)
    sm.fit(NETWORK, torch.zeros(5, 2), steps=2, progress=False)
    with open_bar(total=3, disable=True) as bar:
        bar.update()
    assert stream.getvalue() == ""


def test_a_bar_that_is_off_needs_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a program without a console."""
    monkeypatch.setattr("sys.stderr", None)
    open_bar(total=3, disable=True).close()
