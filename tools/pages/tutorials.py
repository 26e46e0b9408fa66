"""Execute tutorials, ``py:percent`` scripts, into Markdown pages with their output and pictures.

A tutorial stops the build if a cell fails, writes to the error stream, or draws a picture without
a description (``# %% alt="..."``). Executed pages are cached under a hash of the page and of all
that it depends on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from traitlets.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LONGEST_CELL = 300
"""Seconds after which a cell counts as hung."""
COLOURS = re.compile("\x1b\\[[0-9;]*m")
"""Escape codes that colour a traceback."""


class TutorialError(Exception):
    """A tutorial that does not run."""


@dataclass(frozen=True)
class Page:
    """An executed tutorial.

    Attributes:
        name: Its name, without an ending.
        folder: Holds ``page.md`` and the pictures, which the page expects in a folder of its name.
    """

    name: str
    folder: Path

    @property
    def text(self) -> str:
        """Its Markdown."""
        return (self.folder / "page.md").read_text(encoding="utf-8")

    @property
    def pictures(self) -> list[Path]:
        """Files that it shows."""
        return sorted(self.folder.glob("*.png"))


def execute_all(sources: list[Path], cache: Path, jobs: int | None = None) -> list[Page]:
    """Execute tutorials, several at once, unless they are in the cache.

    Args:
        sources: The scripts.
        cache: Folder of executed pages; those that no source needs any more are deleted.
        jobs: How many at once; the number of cores if None.

    Raises:
        TutorialError: If one of them does not run, with the cell and what went wrong.
    """
    library = hash_of_library()
    pages = [Page(path.stem, cache / f"{path.stem}-{key_of(path, library)}") for path in sources]
    todo = [pair for pair in zip(sources, pages, strict=True) if not pair[1].folder.exists()]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        list(pool.map(lambda pair: execute(*pair), todo))
    needed = {page.folder for page in pages}
    for folder in cache.glob("*/"):
        if folder not in needed:
            shutil.rmtree(folder)
    return pages


def execute(source: Path, page: Page) -> None:
    """Execute one tutorial into the folder of its page.

    Raises:
        TutorialError: If it does not run.
    """
    notebook = jupytext.read(source)
    setup = nbformat.v4.new_code_cell((HERE / "setup_cell.py").read_text(encoding="utf-8"))
    notebook.cells.insert(0, setup)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        timeout=LONGEST_CELL,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    )
    try:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        asyncio.run(client.async_execute(env=env))
    except CellExecutionError as error:
        message = COLOURS.sub("", str(error))
        raise TutorialError(f"{source.name} does not run: {message}") from None
    del notebook.cells[0]
    for cell in notebook.cells:
        check_cell(cell, source)
    text, resources = _exporter().from_notebook_node(
        notebook, resources={"output_files_dir": page.name}
    )
    draft = page.folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, content in resources["outputs"].items():
        (draft / Path(name).name).write_bytes(content)
    (draft / "page.md").write_text(text, encoding="utf-8")
    draft.rename(page.folder)


def check_cell(cell: Any, source: Path) -> None:
    """Raise an error for output that a reader should not see.

    Raises:
        TutorialError: If the cell wrote to the error stream, or drew without a description.
    """
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr":
            raise TutorialError(
                f"{source.name} writes to the error stream:\n{output['text']}\nin the cell\n"
                f"{cell.source}"
            )
        if "image/png" in output.get("data", {}) and not cell.metadata.get("alt"):
            raise TutorialError(
                f'{source.name} draws without a description, give it one as # %% alt="...":\n'
                f"{cell.source}"
            )


def key_of(source: Path, library: str) -> str:
    """Hash of all that an executed page depends on."""
    digest = hashlib.sha256(library.encode())
    digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def hash_of_library() -> str:
    """Hash of the inputs of all pages: library, benchmark results, and the code that runs them."""
    import torch

    digest = hashlib.sha256(json.dumps([torch.__version__, nbformat.__version__]).encode())
    files = [
        *ROOT.glob("sde_models/**/*.py"),
        *ROOT.glob("benchmarks/results/*.json"),
        *HERE.glob("template/**/*"),
        HERE / "setup_cell.py",
        Path(__file__),
    ]
    for path in sorted(files):
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _exporter() -> MarkdownExporter:
    config = Config()
    config.TemplateExporter.extra_template_basedirs = [str(HERE / "template")]
    config.TemplateExporter.template_name = "page"
    config.NbConvertBase.display_data_priority = ["image/png", "text/markdown", "text/plain"]
    return MarkdownExporter(config=config)
