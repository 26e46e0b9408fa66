"""The documentation is not built with broken code, links, names or formulas."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
from nbformat.v4 import new_code_cell, new_output
from pages import formulas
from pages.benchmarks import NEEDS_A_GPU, TITLES, benchmark_files
from pages.docstrings import as_markdown, where_defined
from pages.messages import message_page, messages
from pages.reference import public_names
from pages.tutorials import Page, TutorialError, check_cell, execute, execute_all, key_of

ROOT = Path(__file__).parents[2]
GOOD = """\
# %% [markdown]
# # Title
#
# About $x^2$.

# %%
print("said", 1 + 1)

# %% alt="A line that rises"
import matplotlib.pyplot as plt

plt.plot([0, 1])
plt.show()
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "page.py"
    path.write_text(text)
    return path


def test_a_tutorial_becomes_a_page_with_what_it_prints_and_draws(tmp_path: Path) -> None:
    source, cache = write(tmp_path / "tutorials", GOOD), tmp_path / "cache"
    (page,) = execute_all([source], cache)
    assert "# Title" in page.text
    assert '```python\nprint("said", 1 + 1)\n```' in page.text
    assert '```text title="Output"\nsaid 2\n```' in page.text
    (picture,) = page.pictures
    assert f"![A line that rises](page/{picture.name})" in page.text
    assert picture.read_bytes().startswith(b"\x89PNG")

    # The page is used again while nothing changes.
    (page.folder / "page.md").write_text("kept")
    assert execute_all([source], cache)[0].text == "kept"


def test_a_page_depends_on_its_text_and_on_the_library(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    key = key_of(source, "library")
    assert key == key_of(source, "library")
    assert key != key_of(source, "another library")
    source.write_text(GOOD.replace("1 + 1", "1 + 2"))
    assert key != key_of(source, "library")


def test_a_tutorial_that_fails_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD.replace('print("said", 1 + 1)', "assert 1 > 2, 'not so'"))
    with pytest.raises(TutorialError, match=r"(?s)page.py does not run.*assert 1 > 2.*not so"):
        execute(source, Page("page", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_readers_should_not_see_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    cell = new_code_cell("run()", outputs=[new_output("stream", name="stderr", text="careful")])
    with pytest.raises(TutorialError, match=r"error stream:\ncareful\nin the cell\nrun\(\)"):
        check_cell(cell, source)
    cell = new_code_cell("plot()", outputs=[new_output("display_data", {"image/png": "..."})])
    with pytest.raises(TutorialError, match="draws without a description"):
        check_cell(cell, source)
    cell.metadata["alt"] = "A line"
    check_cell(cell, source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("See [fit][sde_models.training.fitting.fit].", "cross-reference target"),
        ("See [there](index.md#nowhere).", "no such anchor on this page"),
        ("See [there](nowhere.md).", "'nowhere.md'"),
    ],
    ids=["name", "anchor", "page"],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, said: str) -> None:
    """The reference is not among these pages, so that no name of it can be found."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nnav: [index.md]\nhooks: []\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert "Aborted with 1 warnings in strict mode" in done.stdout + done.stderr


def test_bad_formulas_are_found(tmp_path: Path) -> None:
    formulas.install()
    page = tmp_path / "index.html"
    good = '<span class="arithmatex">\\(a &lt; \\sigma_t\\)</span>'
    page.write_text(good + '<div class="arithmatex">\\[\\frac{1}{2}\\]</div>')
    assert formulas.check(tmp_path) == 2
    page.write_text(good + '<span class="arithmatex">\\(\\frac{1}\\)</span>')
    with pytest.raises(formulas.FormulaError, match=r"index.html: .*\\frac\{1\}"):
        formulas.check(tmp_path)
    page.write_text('<span class="arithmatex">\\(\\label{a}\\)</span>')
    with pytest.raises(formulas.FormulaError, match="label"):
        formulas.check(tmp_path)


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_cells_of_a_tutorial_can_be_copied_into_a_file(path: Path) -> None:
    """No magic, and every name is defined by a cell before; the build runs them, in order."""
    cells = jupytext.read(path).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    compile(code, path, "exec")
    assert not re.search(r"^\s*[%!]|get_ipython|display\(", code, re.MULTILINE)
    assert "import sde_models as sm" in code
    assert cells[0].source.startswith("# ")


def test_roles_and_directives_become_markdown() -> None:
    text = (
        "At :math:`\\sigma_t`, see :func:`~sde_models.fit`.\n\n"
        ".. math:: a = b\n          + c .\n\nEnd"
    )
    assert as_markdown(text) == (
        "At \\(\\sigma_t\\), see [`fit`][sde_models.training.fitting.fit].\n\n"
        "\\[\na = b\n+ c .\n\\]\n\n\n\nEnd"
    ).replace("\n\n\n\nEnd", "\n\nEnd")
    assert (
        as_markdown("Reference:\n    A paper\n    of 1905.\n")
        == "**Reference:** A paper of 1905.\n"
    )
    assert where_defined("sde_models.no_such") == "sde_models.no_such"


def test_every_public_name_has_its_page() -> None:
    import sde_models as sm

    shown = {
        name for modules in public_names().values() for names in modules.values() for name in names
    }
    functions = {name for name in sm.__all__ if hasattr(getattr(sm, name), "__module__")}
    assert functions - {"__version__"} <= shown


def test_every_benchmark_is_shown(tmp_path: Path) -> None:
    files = dict(benchmark_files(ROOT / "benchmarks" / "results"))
    page = files["reference/benchmarks.md"]
    for name in TITLES:
        measured = (ROOT / "benchmarks" / "results" / f"{name}.md").exists()
        assert (f"benchmarks/{name}.py" in page) == (measured or name not in NEEDS_A_GPU)
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
    (tmp_path / "new.md").touch()
    with pytest.raises(ValueError, match="without a title"):
        list(benchmark_files(tmp_path))


def test_every_message_is_listed(tmp_path: Path) -> None:
    source = """
def f(x):
    if x > 1:
        raise ValueError(f"x must be at most 1, got {x!r}: " "divide it by x_max")
    raise errors.StepLimitError("too many steps were tried here", t=0)
"""
    assert list(messages(source)) == [
        ("ValueError", r"x must be at most 1, got …: divide it by x\_max"),
        ("StepLimitError", "too many steps were tried here"),
    ]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "room.py").write_text(source)
    path, text = message_page(tmp_path)
    assert path == "reference/messages.md"
    assert "## part.room\n\n- `ValueError`: x must be at most 1" in text
    listed = message_page(ROOT / "sde_models")[1]
    assert listed.count("\n- `") > 250
    assert "is below the rounding of …, …: no step would be small enough" in listed
