"""A page of the benchmarks' tables and pictures, as last measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

TITLES = {
    "samplers": "Samplers",
    "overhead": "Overhead of the solvers",
    "step_control": "Steps for each sample",
    "likelihood": "Likelihoods",
    "calibration": "Calibration of the errors",
    "density": "Densities of real images",
    "score_matching": "Score matching",
    "fokker_planck": "The Fokker-Planck residual",
    "training_overhead": "Overhead of training",
    "gpu": "On a GPU",
}
"""Titles of the tables by the name of their files, in order."""

NEEDS_A_GPU = {"gpu"}
"""Left out until measured."""


def benchmark_files(results: Path) -> Iterator[tuple[str, str | bytes]]:
    """Path on the site and content of the page and of its pictures.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If there is a table that has no title here.
    """
    unknown = sorted({path.stem for path in results.glob("*.md")} - TITLES.keys())
    if unknown:
        raise ValueError(f"{results} has tables without a title in {__file__}: {unknown}")
    lines = ["# Benchmarks", "", "As last measured; each is run again by the command it names.", ""]
    for name, title in TITLES.items():
        if name in NEEDS_A_GPU and not (results / f"{name}.md").exists():
            continue
        lines += [f"## {title} {{ #{name.replace('_', '-')} }}", ""]
        lines += [f"`python benchmarks/{name}.py`", ""]
        text = (results / f"{name}.md").read_text(encoding="utf-8")
        lines += [line.replace("## ", "### ") for line in text.splitlines()] + [""]
        picture = results / f"{name}.png"
        if picture.exists():
            lines += [f"![{title}, as in the table above](benchmarks/{name}.png)", ""]
            yield f"reference/benchmarks/{name}.png", picture.read_bytes()
    yield "reference/benchmarks.md", "\n".join(lines)
