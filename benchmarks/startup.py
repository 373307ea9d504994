"""Start-up: `nenya extract` on a file of ten cutouts, from the command to the result.

`python benchmarks/startup.py` runs, in turn and each in a process of its own, medians of five: the command; its imports
alone (torch, Lightning and what they pull in, which nobody can do without); and `--help`, which needs neither.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, interleave, machine, medians, write
from memory import TINY, generate, make_weights

IMPORTS = "import torch, lightning.pytorch"


def seconds(command, folder):
    """Return a function that runs a command and returns its seconds."""

    def run():
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats, about = parser.parse_args().repeats, machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "ten.h5", 10, 64)
        make_weights(folder / "tiny.pth")
        script = [sys.executable, str(ROOT / "scripts" / "extract.py")]
        command = [*script, *TINY, "data=ten.h5", "ckpt=tiny.pth", "trainer=cpu", "clobber=true"]
        figures = interleave(
            {
                "extract ten cutouts": seconds(command, folder),
                "import torch and lightning": seconds(
                    [sys.executable, "-c", "import torch, lightning.pytorch"], folder
                ),
                "extract --help": seconds([*script, "--help"], folder),
            },
            repeats,
        )
    for what, median in medians(figures).items():
        print(f"{what:<28}{median:7.2f} s   ({min(figures[what]):.2f} to {max(figures[what]):.2f})")
    write("startup", {"repeats": repeats, "seconds": medians(figures), "all": figures}, about)


if __name__ == "__main__":
    main()
