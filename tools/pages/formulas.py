"""Formulas by KaTeX: its files for the site, and a check of every formula of the site."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
KATEX = HERE / "node_modules" / "katex" / "dist"
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


class FormulaError(Exception):
    """A formula that KaTeX cannot read, or KaTeX is missing."""


def install() -> None:
    """Install KaTeX in the version of the lock file, if it is missing.

    Raises:
        FormulaError: If npm is missing or fails.
    """
    if KATEX.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise FormulaError(
            "the documentation needs KaTeX from npm, but npm was not found: install Node.js, or "
            "read the sources in docs/"
        )
    done = subprocess.run(
        [npm, "ci", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FormulaError(f"npm ci in {HERE} failed:\n{done.stdout}{done.stderr}")


def files() -> Iterator[tuple[str, Path]]:
    """Path on the site and file of everything that the site serves for formulas."""
    for pattern in ("katex.min.css", "katex.min.js", "fonts/*.woff2"):
        for path in sorted(KATEX.glob(pattern)):
            yield f"assets/katex/{path.relative_to(KATEX)}", path
    yield "assets/formulas.js", HERE / "formulas.js"


def check(site: Path) -> int:
    """Let KaTeX read every formula of a built site.

    Returns:
        Number of formulas.

    Raises:
        FormulaError: With each formula that it cannot read, and its page.
    """
    found = [
        {"page": str(page.relative_to(site)), "formula": html.unescape(match[2])}
        for page in sorted(site.rglob("*.html"))
        for match in FORMULA.finditer(page.read_text(encoding="utf-8"))
    ]
    done = subprocess.run(
        ["node", str(HERE / "check_formulas.mjs")],
        input=json.dumps(found), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FormulaError(f"formulas that KaTeX does not understand:\n{done.stdout}{done.stderr}")
    return len(found)
