"""The options of a solve are typed: an editor completes them, and mypy checks a user's call."""

from __future__ import annotations

from pathlib import Path

import pytest

HEAD = """
import torch

import sde_models as sm

model = sm.GaussianMixture([[-2.0], [2.0]], 0.5).score_model(sm.VPSDE())
x = torch.zeros(4, 1)
"""
RIGHT = """
out: sm.Sample = sm.sample(model, (4, 1), "ddim", steps=20, cond={"label": 3}, progress=True)
found: sm.LogProb = sm.log_prob(model, x, trace="quadrature", intervals=32, rtol=1e-3)
z = sm.encode(model, x, callback=lambda step: print(step.t)).z
bits = sm.bits_per_dim(model, x, levels=4, tol=0.1, repeats=2)
flow = sm.solve(sm.ProbabilityFlow(model), x, (1e-3, 1.0), "ode:rk4", steps=10, path=True)
loss = sm.maximum_likelihood_loss(model, x, intervals=12)
result = sm.evaluate(model, x, "folder", tol=0.1, dequantization="uniform")
shards = sm.sample_to_folder(model, 10, "folder", steps=20, denoise=True)
value = sm.losses.sliced_score_matching(model, x, sigma=0.5, stratified=False, cond={"label": 3})
"""
WRONG = {
    "misspelt": 'sm.sample(model, (4, 1), "ddim", step=20)',
    "of another type": 'sm.encode(model, x, rtol="small")',
    "of no trace": "sm.log_prob(model, x, nodes=32)",
    "handed on": "sm.bits_per_dim(model, x, levels=4, rtoll=1e-3)",
    "of a path": 'sm.encode_to_folder(model, x, "folder", path=True)',
    "of a loss": "sm.losses.sliced_score_matching(model, x, stratifed=False)",
    "a condition": "sm.decode(model, x, label=3)",
}


def test_mypy_accepts_options_and_finds_mistakes(tmp_path: Path) -> None:
    """Each wrong line in a file of its own, all in one run; under strict rules."""
    api = pytest.importorskip("mypy.api")
    (tmp_path / "right.py").write_text(HEAD + RIGHT)
    for index, line in enumerate(WRONG.values()):
        (tmp_path / f"wrong_{index}.py").write_text(f"{HEAD}{line}\n")
    files = sorted(map(str, tmp_path.glob("*.py")))
    said, problems, _ = api.run(["--strict", "--no-error-summary", *files])
    assert not problems
    complaints = [line for line in said.splitlines() if ": error:" in line]
    assert all("wrong_" in line for line in complaints), said
    for index, name in enumerate(WRONG):
        assert any(f"wrong_{index}.py" in line for line in complaints), name
