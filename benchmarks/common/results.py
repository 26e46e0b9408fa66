"""What every benchmark shares: its common options, and the folder that its results go to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"


def common_options(description: str | None, threads: int = 1) -> argparse.ArgumentParser:
    """Options that every benchmark has.

    Args:
        description: Docstring of the benchmark, whose first line is shown.
        threads: Threads of torch, if nothing is said about them.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=threads, help="threads of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of the command line, with the threads set."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def empty_figure(width: float, height: float) -> Figure:
    """A figure in inches that needs no window system."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(folder: Path, name: str, rows: Any, table: str, figure: Figure | None = None) -> None:
    """Print the table, and write it as ``name.md``, the rows as ``.json``, the figure as ``.png``.

    Args:
        folder: Where they go.
        name: Their name without an ending.
        rows: All that was measured, of plain numbers and text.
        table: The same for readers.
        figure: The same as a picture.
    """
    print(table)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(table + "\n")
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    if figure is not None:
        figure.savefig(folder / f"{name}.png", dpi=110)
