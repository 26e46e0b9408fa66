"""Hooks of MkDocs: add the generated pages, and check the formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort
from mkdocs.structure.files import File, Files

# The pages are those of this checkout, whatever is installed. MkDocs restores the path later.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import sde_models  # noqa: F401
from pages import formulas
from pages.benchmarks import benchmark_files
from pages.messages import message_page
from pages.reference import reference_pages
from pages.tutorials import TutorialError, execute_all

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "tutorials"
CHANGELOG = ROOT / "CHANGELOG.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference pages into the navigation, where its entry ``reference`` is."""
    sections: dict[str, list[str]] = {}
    for room, path, _ in reference_pages():
        sections.setdefault(room, []).append(path)
    _fill(config.nav or [], [{room: paths} for room, paths in sections.items()])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add everything that is generated.

    Raises:
        Abort: If a tutorial does not run, or there is no KaTeX.
    """
    folder = Path(config.docs_dir) / "tutorials"
    try:
        formulas.install()
        pages = execute_all(sorted(folder.glob("*.py")), CACHE)
    except (TutorialError, formulas.FormulaError) as error:
        raise Abort(str(error)) from error
    for page in pages:
        _add(files, config, f"tutorials/{page.name}.md", page.text)
        for picture in page.pictures:
            _add(files, config, f"tutorials/{page.name}/{picture.name}", picture.read_bytes())
    for _, path, text in reference_pages():
        _add(files, config, path, text)
    _add(files, config, *message_page(ROOT / "sde_models"))
    for path, content in benchmark_files(ROOT / "benchmarks" / "results"):
        _add(files, config, path, content)
    _add(files, config, "changelog.md", CHANGELOG.read_text(encoding="utf-8"))
    for path, source in formulas.files():
        _add(files, config, path, source.read_bytes())
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Check all formulas.

    Raises:
        Abort: If there is one that KaTeX cannot read.
    """
    try:
        formulas.check(Path(config.site_dir))
    except formulas.FormulaError as error:
        raise Abort(str(error)) from error


def _add(files: Files, config: MkDocsConfig, path: str, content: str | bytes) -> None:
    files.append(File.generated(config, path, content=content))


def _fill(nav: list[Any], pages: list[Any]) -> None:
    """Replace the entry ``reference/`` of any section by pages."""
    for entry in nav:
        if isinstance(entry, dict):
            for section in entry.values():
                if isinstance(section, list):
                    if "reference/" in section:
                        at = section.index("reference/")
                        section[at : at + 1] = pages
                    _fill(section, pages)
