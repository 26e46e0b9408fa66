"""A page in one file, with text, tables and figures.

Figures go into the page as SVG whose text takes the colour of the page, so that they can be read
on a phone and in dark mode. There is no script, and nothing is fetched.

Example:
    >>> page = Page("Heat")
    >>> axes = new_axes("Cooling", "time (s)", "temperature (K)")
    >>> _ = axes.plot([0, 1, 2], [400, 330, 300], label="measured")
    >>> page.figure(axes, "A cup of tea.")
    >>> "<svg" in page.html()
    True
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from sde_models._utils.atomic_files import atomic_write
from sde_models.data.dequantization import DATA_RANGE

INK = "#0a0b0c"  # stands for the colour of the page's text; no line or picture uses it
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's colours, distinct for the colour-blind and on light and dark backgrounds."""

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; height: auto; }
figcaption { font-size: 0.9rem; padding: 0.3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--soft); }
"""


def new_axes(
    title: str, x_label: str = "", y_label: str = "", *, size: tuple[float, float] = (6.0, 3.4)
) -> Axes:
    """Make a figure with one pair of axes, in the style of the page.

    The size is in inches; the page scales the width to fit. Labels are a quantity and its unit.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.set_title(title, color=INK, loc="left", fontsize=11)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_prop_cycle(color=COLOURS)
    return axes


def image_strips(
    title: str,
    strips: Mapping[str, Tensor],
    *,
    columns: int = 16,
) -> Axes:
    """Draw groups of grey images under each other, each group with its name on the left.

    Those of a group have shape ``(N, 1, H, W)``; -1 is drawn black and 1 white.

    Raises:
        ValueError: If there are no images, or images of other shapes.
    """
    shapes = {tuple(images.shape[1:]) for images in strips.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != 1:
        raise ValueError(
            f"expected groups of images (N, 1, H, W) of one size, got shapes {shapes or '{}'}"
        )
    montages = [_montage(images, columns) for images in strips.values()]
    gap = np.full((shape[1] // 2, montages[0].shape[1]), np.nan)
    rows: list[np.ndarray] = []
    middles, height = [], 0
    for montage in montages:
        middles.append(height + len(montage) / 2 - 0.5)
        rows += [montage, gap]
        height += len(montage) + len(gap)
    picture = np.concatenate(rows[:-1])
    axes = new_axes(title, size=(6.0, 4.6 * len(picture) / picture.shape[1] + 0.5))
    axes.imshow(picture, cmap="gray", interpolation="none", vmin=DATA_RANGE[0], vmax=DATA_RANGE[1])
    axes.set_xticks([])
    axes.set_yticks(middles, list(strips))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def _montage(images: Tensor, columns: int) -> np.ndarray:
    """Tile images row by row with a transparent pixel between them; empty places are so too."""
    pixels = images[:, 0].detach().double().cpu()
    tiles = pad(pixels, (0, 1, 0, 1, 0, -len(pixels) % columns), value=math.nan)
    rows = tiles.unflatten(0, (-1, columns)).transpose(1, 2)
    return rows.flatten(2).flatten(0, 1)[:-1, :-1].numpy()


def add_legend(axes: Axes) -> None:
    """Show the labels of what was drawn."""
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


class Page:
    """A page that grows from top to bottom.

    Args:
        title: Heading of the page, and name of its tab.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, heading: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
        """Add a table; the first column names its rows.

        Raises:
            ValueError: If a row has another number of cells than the heading.
        """
        for row in rows:
            if len(row) != len(heading):
                raise ValueError(f"row {list(row)} has {len(row)} cells, expected {len(heading)}")
        head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
        )
        self._parts.append(
            # Outside of what scrolls: the caption of a table is as wide as that.
            f'<figure><figcaption>{escape(caption)}</figcaption><div class="wide"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></figure>"
        )

    def figure(self, axes: Axes, caption: str) -> None:
        """Add the figure that the axes are in, with its title for screen readers."""
        title = escape(axes.get_title(loc="left"), quote=True)
        svg = _as_svg(axes).replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
        self._parts.append(f"<figure>{svg}\n<figcaption>{escape(caption)}</figcaption></figure>")

    def html(self) -> str:
        """The page as text."""
        title = escape(self.title)
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title><style>{STYLE}</style></head>",
                f"<body><h1>{title}</h1>",
                *self._parts,
                "</body></html>\n",
            ]
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, under a temporary name first."""
        atomic_write(path, self.html().encode())


def _as_svg(axes: Axes) -> str:
    figure = axes.figure.canvas.figure  # where axes are in a subfigure, the one that holds it
    buffer = io.StringIO()
    # The salt makes names inside the SVG depend on what is drawn, not on chance.
    with mpl.rc_context({"svg.hashsalt": axes.get_title(loc="left"), "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(INK, "currentColor")
