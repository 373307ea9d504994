"""Runs the tour in an empty folder, and puts the pictures that it makes where its page shows them.

    python docs/make_pictures.py

The folder, outputs/docs/tour, is kept, as the notebook reads it. While page and program are the same, nothing is done.
"""

import hashlib
import shutil
import sys
import time

from pages import DOCS, ROOT, blocks_of, reader_environment, run_block

TOUR = ROOT / "outputs" / "docs" / "tour"
PICTURES = DOCS / "pictures"


def main() -> None:
    """Run the tour, unless its pictures are there and up to date."""
    stamp, state = TOUR / ".made", _state()
    if stamp.is_file() and stamp.read_text() == state and PICTURES.is_dir():
        return
    shutil.rmtree(TOUR, ignore_errors=True)
    TOUR.mkdir(parents=True)
    for block in blocks_of(DOCS / "tour.md"):
        if block.runs:
            start = time.monotonic()
            run_block(block, TOUR, reader_environment())
            sys.stderr.write(f"{time.monotonic() - start:6.1f} s  {block}\n")
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir()
    for picture in (TOUR / "pictures").glob("*.png"):
        shutil.copy(picture, PICTURES)
    stamp.write_text(state)


def _state() -> str:
    """Return a hash of all that the pictures depend on here."""
    digest = hashlib.sha256()
    sources = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "configs").rglob("*.yaml"))]
    for block in blocks_of(DOCS / "tour.md"):
        digest.update(block.text.encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
