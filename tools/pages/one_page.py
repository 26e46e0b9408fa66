"""Execute one tutorial, to view it while writing: ``python one_page.py PAGE FOLDER``."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages.tutorials import Page, execute


def main() -> None:
    """Write ``page.md`` and its pictures into a folder named after the page."""
    source, out = (Path(argument) for argument in sys.argv[1:])
    page = Page(source.stem, out / source.stem)
    shutil.rmtree(page.folder, ignore_errors=True)
    start = time.perf_counter()
    execute(source, page)
    print(f"{page.folder / 'page.md'}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
