"""The cost of an extraction against the number of cutouts, their size, and the batch: linear is the aim.

`python benchmarks/scaling.py` extracts generated files with a network that costs nothing (the mean of each cutout), so
that what is left is nenya's own: reading, the journal, the final file. Against N: 1,000 to 1,000,000 cutouts of 16 x 16
pixels; against the side: 64, 128 and 192 pixels at the same number of pixels; against the batch: 32 to 1024.
Microseconds a cutout (or a million pixels), medians of three turns; start-up is excluded.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, interleave, machine, medians, write
from memory import TINY, generate, make_weights

from nenya.cli import run_command
from nenya.models.contrastive import ContrastiveModule

PIXELS = 2**26


def trivial(module, images):
    """Stand for the network: 64 dimensions from each image (B, 1, H, W), at no cost."""
    return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 64) + torch.zeros(64)


def contender(path, weights, rows, *overrides):
    """Return a function that extracts a file and returns the seconds."""
    args = [*TINY, "trainer=cpu", f"data={path}", f"ckpt={weights}", "clobber=true", *overrides]

    def run():
        start = time.perf_counter()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            if run_command("extract", args):
                raise RuntimeError(said.getvalue())
        return time.perf_counter() - start

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000, help="cutouts of the largest file")
    parser.add_argument("--repeats", type=int, default=3)
    args, about = parser.parse_args(), machine()
    ContrastiveModule.forward = trivial
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = {"repeats": args.repeats}
    with tempfile.TemporaryDirectory(dir=RESULTS) as name:
        folder = Path(name)
        weights = folder / "tiny.pth"
        make_weights(weights)
        numbers = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= args.most]
        for rows in numbers:
            generate(folder / f"n{rows}.h5", rows, 16)
        for side in (64, 128, 192):
            generate(folder / f"s{side}.h5", PIXELS // side**2, side)
        batch = "loader.batch_size_valid"
        tables = {
            "cutouts of 16 x 16": {
                f"{rows:,}": (contender(folder / f"n{rows}.h5", weights, rows), rows) for rows in numbers
            },
            "2^26 pixels, side": {
                str(side): (contender(folder / f"s{side}.h5", weights, 0), PIXELS / 1e6) for side in (64, 128, 192)
            },
            "2^26 pixels of side 64, batch": {
                str(size): (contender(folder / "s64.h5", weights, 0, f"{batch}={size}"), PIXELS / 1e6)
                for size in (32, 128, 1024)
            },
        }
        for what, rows in tables.items():
            next(iter(rows.values()))[0]()  # the first one of a process imports and warms up
            found = medians(interleave({key: run for key, (run, _) in rows.items()}, args.repeats))
            results[what] = {key: {"seconds": found[key], "us_each": 1e6 * found[key] / rows[key][1]} for key in rows}
            for key, figures in results[what].items():
                print(f"{what:<32}{key:>10}{figures['seconds']:9.2f} s{figures['us_each']:12.1f} us each", flush=True)
    write("scaling", results, about)


if __name__ == "__main__":
    main()
