"""The code blocks of the pages: found, and run as a reader would.

A block is run by bash or Python, in the order of its page and in one folder, unless the line before it says why not:

    <!-- not run: needs SLURM -->

What a block prints becomes a picture of a terminal where the line before it is

    <!-- screen: name.svg -->
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RUN = {"sh": ("bash", "-euo", "pipefail"), "python": (sys.executable,)}
"""Languages of blocks that are run, and what runs them."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*\S) *-->\n+)?"
    r"(?:^<!-- screen: (?P<screen>[\w.-]+) -->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: the file.
        line: number of the line where its fence opens.
        language: what stands behind the fence: sh, python, yaml, text; a directive's name in braces.
        text: what is in it.
        reason: why it is not run, if it states a reason.
        screen: the picture that is made of what it prints, if there is one.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    screen: str | None = None

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page.name}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is run."""
        return self.language in RUN and self.reason is None


def blocks_of(page: Path) -> list[Block]:
    """Return the code blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start("fence")) + 1,
            match["language"],
            match["text"],
            match["reason"],
            match["screen"],
        )
        for match in _BLOCK.finditer(text)
    ]


_ONE = re.compile(r"(?<![\w.,/:%+-])1 (?!is\b|was\b|has\b|as\b|less\b|rows x\b)[a-z]+s\b")


def plurals_of_one(printed: str) -> list[str]:
    """Return the places of a text where a plural follows the number 1, as in `1 rows`."""
    return _ONE.findall(printed)


def run_block(block: Block, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a block in a folder.

    Returns:
        What it printed.

    Raises:
        RuntimeError: It ended with another exit code than 0, or printed a plural after the number 1; says what it
            printed last.
    """
    with tempfile.NamedTemporaryFile("w", suffix=f".{block.language}") as script:
        script.write(block.text)
        script.flush()
        command = [*RUN[block.language], script.name]
        done = subprocess.run(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{block} ended with {done.returncode}:\n{block.text}\n{done.stdout[-3000:]}")
    if wrong := plurals_of_one(done.stdout):
        raise RuntimeError(f"{block} printed {', '.join(wrong)}:\n{done.stdout[-3000:]}")
    return done.stdout


def reader_environment() -> dict[str, str]:
    """Return an environment in which `nenya` and `python` are this environment's, and this checkout is nenya."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "agg"}
