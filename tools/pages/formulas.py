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
    """A formula that KaTeX does not understand, or no KaTeX."""


def install() -> None:
    """Get KaTeX as the lock file has it, if it is not there.

    Raises:
        FormulaError: If npm is missing or fails.
    """
    if KATEX.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise FormulaError(
            "the documentation takes KaTeX from npm, and there is no npm: install Node.js, or "
            "read the pages as they are in docs/"
        )
    done = subprocess.run(
        [npm, "ci", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FormulaError(f"npm ci in {HERE} failed:\n{done.stdout}{done.stderr}")


def files() -> Iterator[tuple[str, Path]]:
    """What the site serves: path on the site, and file."""
    for pattern in ("katex.min.css", "katex.min.js", "fonts/*.woff2"):
        for path in sorted(KATEX.glob(pattern)):
            yield f"assets/katex/{path.relative_to(KATEX)}", path
    yield "assets/formulas.js", HERE / "formulas.js"


def check(site: Path) -> int:
    """Let KaTeX read every formula of a built site.

    Returns:
        How many there are.

    Raises:
        FormulaError: With each formula that it does not understand, and its page.
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
