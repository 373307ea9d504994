"""Start-up: short commands, from the command to the result, in seconds of the processor.

`python benchmarks/startup.py` runs, in turn and each in a process of its own, medians of five: `nenya extract` on ten
cutouts; torch's import alone, which it needs, and Lightning's as it comes; `nenya search` on an index of ten rows;
`nenya extract --help`. On a quiet machine a process takes as long by the clock.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, interleave, machine, medians, write
from memory import TINY, generate, make_weights


def spent(command, folder):
    """Return a function that runs a command and returns the seconds that the processor worked for it."""

    def run():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats, about = parser.parse_args().repeats, machine()
    scripts = ROOT / "scripts"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "ten.h5", 10, 64)
        make_weights(folder / "tiny.pth")
        script = [sys.executable, str(scripts / "extract.py")]
        command = [*script, *TINY, "data=ten.h5", "ckpt=tiny.pth", "trainer=cpu", "clobber=true"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        index = [sys.executable, str(scripts / "index.py"), "data=ten_latents.h5", "out=ten.index"]
        subprocess.run(index, cwd=folder, check=True, capture_output=True)
        search = [sys.executable, str(scripts / "search.py"), "index=ten.index", "like=1"]
        figures = interleave(
            {
                "extract ten cutouts": spent(command, folder),
                "import torch": spent([sys.executable, "-c", "import torch"], folder),
                "import lightning as it comes": spent([sys.executable, "-c", "import lightning.pytorch"], folder),
                "search an index": spent(search, folder),
                "extract --help": spent([*script, "--help"], folder),
            },
            repeats,
        )
    for what, median in medians(figures).items():
        print(f"{what:<30}{median:7.2f} s   ({min(figures[what]):.2f} to {max(figures[what]):.2f})")
    write("startup", {"repeats": repeats, "processor_seconds": medians(figures), "all": figures}, about)


if __name__ == "__main__":
    main()
