"""Runs the tour and the page on figures in empty folders, and puts their pictures where the pages show them.

    python docs/make_pictures.py

The folders, outputs/docs/tour and outputs/docs/plotting, are kept, as the notebook reads the first. While pages and
program are the same, nothing is done.
"""

import hashlib
import shutil
import sys
import time

from pages import DOCS, ROOT, blocks_of, reader_environment, run_block

TOUR = ROOT / "outputs" / "docs" / "tour"
PICTURES = DOCS / "pictures"
PAGES = {DOCS / "tour.md": TOUR, DOCS / "plotting.md": TOUR.with_name("plotting")}
"""Pages with pictures of their own, and the folders in which they run."""


def main() -> None:
    """Run the pages, unless their pictures are there and up to date."""
    stamp, state = TOUR / ".made", _state()
    if stamp.is_file() and stamp.read_text() == state and PICTURES.is_dir():
        return
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir()
    for page, folder in PAGES.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for block in blocks_of(page):
            if block.runs:
                start = time.monotonic()
                run_block(block, folder, reader_environment())
                sys.stderr.write(f"{time.monotonic() - start:6.1f} s  {block}\n")
        for picture in (folder / "pictures").glob("*.png"):
            shutil.copy(picture, PICTURES)
    stamp.write_text(state)


def _state() -> str:
    """Return a hash of all that the pictures depend on here."""
    digest = hashlib.sha256()
    sources = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "configs").rglob("*.yaml"))]
    for block in (block for page in PAGES for block in blocks_of(page)):
        digest.update(block.text.encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
