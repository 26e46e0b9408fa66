"""The page: well formed, complete in itself, and true to what it was given."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sde_models.demo.report import INK, Page, add_legend, image_strips, new_axes

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


@pytest.fixture
def page() -> Page:
    page = Page("Ducks & drakes <1>")
    page.heading("A > B")
    page.text("Less < more & so on.")
    page.table(["name", "value"], [["a<b", "1"], ["c", "2"]], "A caption.")
    axes = new_axes("Heights", "time (s)", "height (m)")
    axes.plot([0, 1], [1, 0], label="drop")
    add_legend(axes)
    page.figure(axes, "What fell.")
    page.figure(image_strips("Digits", {"some": torch.zeros(3, 1, 4, 4)}), "Black.")
    return page


def test_page_is_well_formed_and_says_what_it_was_given(page: Page) -> None:
    reader = read(page.html())
    words = " ".join(reader.words)
    for text in ("Ducks & drakes <1>", "A > B", "Less < more & so on.", "a<b", "What fell."):
        assert text in words
    labels = [attributes["aria-label"] for tag, attributes in reader.tags if tag == "svg"]
    assert labels == ["Heights", "Digits"]


def test_only_the_cells_of_a_table_scroll(page: Page) -> None:
    """On a narrow screen a table is wider than the page, and so is a caption inside it."""
    [scrolled] = re.findall(r'<div class="wide">(.*?)</div>', page.html(), flags=re.DOTALL)
    assert "".join(read(scrolled).words).split() == ["namevalue", "a<b1", "c2"]
    assert "<figcaption>A caption.</figcaption>" in page.html()


def test_nothing_is_fetched_or_run(page: Page) -> None:
    html = page.html()
    assert not re.search(r"<script|<link|<iframe|@import|\bon\w+=", html)
    for address in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html):
        assert address.startswith(("#", "data:")), address
    for address in re.findall(r"url\(([^)]*)\)", html):
        assert address.strip("\"'").startswith("#"), address
    names = set(re.findall(r"https?://[^\s\"'<>]*", html))
    assert names <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page_suits_phones_and_dark_mode(page: Page) -> None:
    html = page.html()
    assert 'name="viewport" content="width=device-width' in html
    assert "color-scheme: light dark" in html
    assert "currentColor" in html
    assert INK not in html, "all text of figures takes the colour of the page"
    assert "#ffffff" not in html.split("</style>")[1], "no white ground under a figure"


def test_page_is_the_same_each_time(page: Page) -> None:
    assert page.html() == page.html()


def test_global_settings_of_matplotlib_are_left_alone(page: Page) -> None:
    before = dict(mpl.rcParams)
    page.html()
    new_axes("a")
    assert dict(mpl.rcParams) == before


def test_write_replaces_the_file_and_leaves_no_other(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.html()
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(FileNotFoundError):
        page.write(tmp_path / "missing" / "page.html")


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 cells, expected 2"):
        Page("x").table(["a", "b"], [["1", "2", "3"]], "")


def test_image_strips_show_every_pixel_in_its_place() -> None:
    """Three 2x2 images in rows of two: values, the clear gap, and the empty place."""
    images = torch.arange(12, dtype=torch.float32).reshape(3, 1, 2, 2)
    axes = image_strips("x", {"one": images, "two": images}, columns=2)
    picture = np.asarray(axes.images[0].get_array().filled(np.nan))
    empty = np.nan
    first = np.array(
        [
            [0, 1, empty, 4, 5],
            [2, 3, empty, 6, 7],
            [empty] * 5,
            [8, 9, empty, empty, empty],
            [10, 11, empty, empty, empty],
        ]
    )
    expected = np.concatenate([first, np.full((1, 5), empty), first])
    np.testing.assert_array_equal(picture, expected)
    assert axes.images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert list(axes.get_yticks()) == [2.0, 8.0]


def test_image_strips_reach_the_page_pixel_for_pixel() -> None:
    page = Page("x")
    images = torch.tensor([[[[-1.0, 1.0], [0.0, 1.0]]]])
    page.figure(image_strips("x", {"one": images}, columns=1), "")
    (data,) = re.findall(r"data:image/png;base64,([^\"]*)", page.html())
    pixels = imread(io.BytesIO(base64.b64decode(data)))
    assert pixels.shape[:2] == (2, 2)
    np.testing.assert_allclose(pixels[..., 0].flatten()[[0, 1, 3]], [0, 1, 1])
    assert pixels[1, 0, 0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "strips",
    [
        {},
        {"a": torch.zeros(2, 3, 4, 4)},
        {"a": torch.zeros(2, 4)},
        {"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(2, 1, 5, 5)},
    ],
)
def test_image_strips_of_other_shapes_are_refused(strips: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        image_strips("x", strips)
