"""Runs the pages that have pictures of their own, and puts the pictures where the pages show them.

    python docs/make_pictures.py

Each page runs in a folder of outputs/docs/, which is kept: the notebook reads that of the tour. A page begins in an
empty folder, or in a copy of the tour's, as a comment in it says; `docs/study.md` begins with granules. A page that did
not change, in a program that did not change, is not run again.
"""

import hashlib
import re
import shutil
import sys
import time
from pathlib import Path

from pages import DOCS, ROOT, Block, blocks_of, reader_environment, run_block
from study_files import provide_granules

TOUR = ROOT / "outputs" / "docs" / "tour"
PICTURES = DOCS / "pictures"
FROM_TOUR = "<!-- begins in the folder of the tour -->"
NAMES = ("tour", "netcdf", "cutouts", "migrate", "cluster", "plotting", "compare", "review", "study")
PAGES = {DOCS / f"{name}.md": TOUR.with_name(name) for name in NAMES}
"""Pages with pictures of their own, and the folders in which they run; the tour is the first."""

_BEFORE = re.compile(r"<!-- before this page runs:\n(.*?)-->", re.DOTALL)


def main() -> None:
    """Run the pages with missing or outdated pictures."""
    sources = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "configs").rglob("*.yaml"))]
    program = _digest(*(path.read_text() for path in [*sources, DOCS / "pages.py", DOCS / "study_files.py"]))
    PICTURES.mkdir(exist_ok=True)
    for page, folder in PAGES.items():
        state = program + _digest(*_code(DOCS / "tour.md"), *_code(page))
        stamp = folder / ".made"
        shown = {DOCS / name for name in shown_in(page)}
        if stamp.is_file() and stamp.read_text() == state and all(path.is_file() for path in shown):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        run_page(page, folder)
        for picture in (folder / "pictures").glob("*.*"):
            shutil.copy(picture, PICTURES)
        stamp.write_text(state)


def shown_in(page: Path) -> list[str]:
    """Return the pictures that a page shows and the build makes: `pictures/<name>`."""
    return re.findall(r"\]\((pictures/[^)]+)\)", page.read_text())


def run_page(page: Path, folder: Path) -> None:
    """Run a page in a new folder, with the files that it begins with.

    Raises:
        RuntimeError: A block of the page failed.
    """
    text = page.read_text()
    if FROM_TOUR in text:
        shutil.copytree(TOUR, folder, ignore=shutil.ignore_patterns("pictures", ".made", "page", "metrics"))
    else:
        folder.mkdir(parents=True)
    (folder / "pictures").mkdir(exist_ok=True)
    if page.stem == "study":
        provide_granules(folder, PICTURES)
    environment = {**reader_environment(), "PICTURES": str(folder / "pictures")}
    for before in _BEFORE.findall(text):
        run_block(Block(page, 1, "sh", before, None), folder, environment)
    for block in blocks_of(page):
        if block.runs:
            start = time.monotonic()
            printed = run_block(block, folder, environment)
            if block.screen:
                screen(block, printed, folder / "pictures" / block.screen)
            sys.stderr.write(f"{time.monotonic() - start:6.1f} s  {block}\n")


def screen(block: Block, printed: str, path: Path) -> None:
    """Draw a block's commands and what they printed as a picture of a terminal, an SVG that loads nothing."""
    from rich.console import Console
    from rich.text import Text

    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=118, file=nowhere, force_terminal=True)
        for line in block.text.strip().splitlines():
            console.print(Text(f"$ {line}", style="bold cyan"), soft_wrap=False)
        console.print(Text(printed.strip().replace(str(path.parents[1]), "")))
        drawn = console.export_svg(title="nenya")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    path.write_text(drawn.replace("Fira Code", "monospace"))


def _code(page: Path) -> list[str]:
    """Return all texts of a page that run, and the names of its pictures of terminals."""
    blocks = [f"{block.text}{block.runs}{block.screen}" for block in blocks_of(page)]
    return [*_BEFORE.findall(page.read_text()), *blocks]


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    main()
