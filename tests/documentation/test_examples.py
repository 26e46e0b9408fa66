"""The examples run as they stand, at little work."""

from __future__ import annotations

import csv
import math
import re
import runpy
import sys
from pathlib import Path

import pytest

import sde_models as sm
from sde_models.models.model_files import load_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def numbers(shown: str, line: str) -> list[float]:
    """The numbers that follow a word at the beginning of the one line that has it."""
    (found,) = re.findall(rf"^ *{re.escape(line)}(.*)$", shown, re.MULTILINE)
    return [float(number) for number in re.findall(r"[-+]?\d[\d.]*(?:e[-+]\d+)?", found)]


def assert_picture(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG")


def test_mixture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("mixture.py", "--samples", "20", "--solver", "ode:dopri8", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "ode:dopri8" in shown
    assert "round-trip error" in shown


def test_denoising_sigma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score of the data needs less noise than sampling does."""
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


def test_train_toy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Better than one Gaussian of the same spread, and no better than the truth."""
    words = ("--toy", "eight-gaussians", "--steps", "300", "--width", "32", "--held-out", "200")
    run_example(
        "train_toy.py", *words, "--tol", "0.2", "--out", str(tmp_path), monkeypatch=monkeypatch
    )
    mean, stderr, *_ = numbers(capsys.readouterr().out, "held-out log-density")
    std = sm.data.toy_mixture("eight-gaussians").std
    truth = -math.log(8) - math.log(2 * math.pi * math.e * std**2)
    gaussian = -math.log(2 * math.pi * math.e)
    assert gaussian + 5 * stderr < mean < truth + 3 * stderr
    assert load_model(tmp_path / "model.safetensors").event_shape == (2,)
    assert_picture(tmp_path / "samples.png")


def test_likelihood_of_dataset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What was lost is made again, to the same values, and no more than that."""
    words = ("--steps", "20", "--width", "4", "--images", "12", "--chunk", "4", "--tol", "20")
    found = []
    for _ in range(2):
        run_example(
            "likelihood_of_dataset.py", *words, "--out", str(tmp_path), monkeypatch=monkeypatch
        )
        found.append((capsys.readouterr().out, (tmp_path / "bits.csv").read_text()))
        (tmp_path / "evaluation" / "chunk-000001.safetensors").unlink()
    (first, table), (second, again) = found
    assert first.startswith("0 of 12 images were found done")
    assert second.startswith("8 of 12 images were found done")
    assert table == again
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 12
    for column, line in (("bits", "bits per dimension"), ("gaussian_bits", "a Gaussian has")):
        mean = sum(float(row[column]) for row in rows) / len(rows)
        assert numbers(first, line)[0] == pytest.approx(mean, abs=1e-4)
    # 17 levels that are all alike have log2(17) bits, and the digits of the training set 2.9.
    assert 2.5 < numbers(first, "a Gaussian has")[0] < math.log2(17) - 0.5


def test_compare_solvers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Errors fall with the cost, and faster with the order, within the evaluations allowed."""
    words = ("--solvers", "ddim", "flow-abm-4", "--nfe", "10", "40", "--samples", "40")
    words = (*words, "--plot", str(tmp_path / "plot.png"))
    run_example("compare_solvers.py", *words, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    ddim, flow = (numbers(shown, f"{name} ") for name in ("ddim", "flow-abm-4"))
    assert all(low <= 10 and 35 <= high <= 40 for _, low, _, high in (ddim, flow))
    assert ddim[0] / ddim[2] > 2
    assert flow[0] / flow[2] > 2 * ddim[0] / ddim[2]
    assert numbers(shown, "reference: ")[1] < 0.01 * flow[2]
    assert "best for 40 evaluations: flow-abm-4" in shown
    assert_picture(tmp_path / "plot.png")


def test_compare_solvers_on_a_saved_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, network = tmp_path / "model", sm.nn.ResidualNetwork((3,), width=8, depth=1)
    words = ("--model", str(path), "--solvers", "dpmpp-2m", "--nfe", "10", "--samples", "4")
    sm.save_model(path, sm.ScoreModel(network, sm.VPSDE(), preconditioning="edm"))
    run_example("compare_solvers.py", *words, monkeypatch=monkeypatch)
    assert "best for 10 evaluations: dpmpp-2m" in capsys.readouterr().out


def test_edit_latents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Images come back, their spread goes with the temperature, and the edit does what it says."""
    words = ("--steps", "150", "--width", "48", "--tol", "1e-2", "--strengths", "2")
    words = (*words, "--temperatures", "0.6", "1.2", "--out", str(tmp_path / "out.png"))
    run_example("edit_latents.py", *words, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert numbers(shown, "round trip of ")[1] < 0.1
    assert numbers(shown, "temperature 0.6: ")[0] < 0.9
    assert numbers(shown, "temperature 1.2: ")[0] > 1.05
    assert numbers(shown, "edited by 0: ")[0] < 10
    assert numbers(shown, "edited by 2: ")[0] > 70
    assert_picture(tmp_path / "out.png")


def test_fine_tune_likelihood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Fine-tuning gains more than the errors of the measurement, and more than its control."""
    words = ("--steps", "200", "--width", "24", "--fine-tuning", "60", "--held-out", "400")
    words = (*words, "--tol", "0.05", "--out", str(tmp_path / "model"))
    run_example("fine_tune_likelihood.py", *words, monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    gain, stderr, numerical = numbers(shown, "gain by fine-tuning ")
    assert gain > 3 * stderr + numerical
    assert gain > numbers(shown, "gain by more denoising ")[0]
    before, after = (numbers(shown, f"{name} ")[0] for name in ("before", "fine-tuned"))
    assert after - before == pytest.approx(gain, abs=2e-4)
    assert load_model(tmp_path / "model").event_shape == (2,)


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_example(name, "--help", monkeypatch=monkeypatch)
    assert "--seed" in capsys.readouterr().out
