"""The Python of README and documentation runs as it stands, and says what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sde_models.models.model_files import NETWORKS

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/solvers.md",
    "docs/likelihood.md",
    "docs/score-matching.md",
    "docs/data-and-networks.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where an example may save a file
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    if page not in ("README.md", "docs/index.md"):  # they show calls only
        exec(PREPARED, names)
    for block in blocks:
        exec(block, names)
    if page == "README.md":
        round_trip, difference = re.findall(r"tensor\(([\d.e-]+)", capsys.readouterr().out)
        assert float(round_trip) < 1e-3
        assert float(difference) < 1e-2


PREPARED = """
import torch
import sde_models as sm
model = sm.GaussianMixture(torch.zeros(2, 2), 1.0).score_model(sm.VPSDE())
x = x0 = data = torch.randn(4, 2)
images = test_set = torch.randint(0, 256, (4, 2))
"""


def test_every_network_is_in_the_table_of_the_page() -> None:
    page = (ROOT / "docs" / "data-and-networks.md").read_text()
    for name in NETWORKS:
        assert f"| `sm.nn.{name}(" in page
    assert f"There are {('two', 'three', 'four')[len(NETWORKS) - 2]} here." in page
