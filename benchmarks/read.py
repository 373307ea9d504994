"""Reading cutout files of every usual layout: nenya, plain h5py, and the original's way, against the machine's limit.

nenya reads as its extraction does (blocks in order, the file opened again) and as its training does (the partition
unpacked into memory). h5py reads slabs that are aligned to the chunks, its best. The original opens the file for each
cutout. The limits are a copy in memory, and reads of the file's bytes from the page cache. All take turns; the
table has medians, in cutouts a second.

    python benchmarks/read.py [--quick]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from nenya.commands.compose import compose
from nenya.commands.repack import repack_file
from nenya.data.blocks import BlockRows, cut_blocks
from nenya.data.cutouts import inspect_cutouts
from nenya.data.unpack import load_partition

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parent))
from common import interleave, machine, make_cutouts, write
from original_loader import read_item

SIDE = 64
CHUNKED = (64, 1, SIDE, SIDE)
LAYOUTS = {
    "contiguous": {},
    "gzip (1,1,64,64)": {"compression": "gzip", "chunks": (1, 1, SIDE, SIDE)},
    "gzip (64,1,64,64)": {"compression": "gzip", "chunks": CHUNKED},
    "gzip automatic": {"compression": "gzip", "chunks": (1250, 1, 4, 4)},  # as h5py cuts a file of 150,000
    "gzip+shuffle": {"compression": "gzip", "chunks": CHUNKED, "shuffle": True},
    "lzf": {"compression": "lzf", "chunks": CHUNKED},
    "lzf+shuffle": {"compression": "lzf", "chunks": CHUNKED, "shuffle": True},
    "nenya repack": None,
}
NAMES = ("extraction", "training", "h5py slabs", "original")


def timed(work, rows):
    """Return the cutouts a second of some work on so many."""
    start = time.perf_counter()
    work()
    return rows / (time.perf_counter() - start)


def extraction(path):
    file = inspect_cutouts(path)
    order = cut_blocks(file, 1024)
    data = BlockRows(file, order, ahead=True)
    for block in order:
        data.__getitems__(block)
    data.close()


def slabs(path):
    with h5py.File(path) as file:
        data = file["train"]
        step = max(256, data.chunks[0]) if data.chunks else 256
        for start in range(0, len(data), step):
            data[start : start + step]


def original(path, order):
    for row in order:
        read_item(path, row)


def page_cache(path, buffer):
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def contenders(path, rows, items):
    """Return what is measured of one file."""
    order = np.random.default_rng(0).permutation(rows)[:items].tolist()
    return {
        "extraction": lambda: timed(lambda: extraction(path), rows),
        "training": lambda: timed(lambda: load_partition(path, "train"), rows),
        "h5py slabs": lambda: timed(lambda: slabs(path), rows),
        "original": lambda: timed(lambda: original(path, order), items),
    }


def limits(path, cutouts, repeats):
    """Return the cutouts a second that the machine copies, and reads from the page cache."""
    copy, buffer = np.empty_like(cutouts), bytearray(2**22)
    size = os.path.getsize(path)
    measures = {
        "copy in memory": lambda: timed(lambda: np.copyto(copy, cutouts), len(cutouts)),
        "page cache": lambda: timed(lambda: page_cache(path, buffer), size / (4 * SIDE * SIDE)),
    }
    return {name: statistics.median(figures) for name, figures in interleave(measures, repeats).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,250 cutouts and one turn instead of 2,500 and three")
    parser.add_argument("--rows", type=int, help="number of cutouts")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="contiguous is always there"
    )
    arguments = parser.parse_args()
    rows, repeats = (1250, 1) if arguments.quick else (2500, 3)
    rows = arguments.rows or rows
    result = {"machine": machine(), "rows": rows, "repeats": repeats, "unit": "cutouts of 64 x 64 float32 a second"}
    cutouts, result["layouts"] = make_cutouts(rows), {}
    print(f"{rows} cutouts of {SIDE} x {SIDE}; cutouts/s, median of {repeats}; ratios to h5py and to the original")
    print(f"{'layout':<20}{'MB':>7}" + "".join(f"{name:>12}" for name in NAMES) + f"{'x h5py':>8}{'x original':>11}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: layout for name, layout in LAYOUTS.items() if name in ("contiguous", *arguments.layouts)}
        for number, (name, layout) in enumerate(chosen.items()):
            path = Path(folder) / f"{number}.h5"
            if layout is None:
                repack_file(Path(folder) / "0.h5", path, compose("repack", []))
            else:
                with h5py.File(path, "w") as file:
                    file.create_dataset("train", data=cutouts, **layout)
            items = 4 if "automatic" in name else 50
            figures = interleave(contenders(path, rows, items), repeats)
            medians = {key: statistics.median(values) for key, values in figures.items()}
            medians["MB"] = path.stat().st_size / 1e6
            result["layouts"][name] = medians | {"all": figures}
            against = medians["extraction"] / medians["h5py slabs"], medians["extraction"] / medians["original"]
            line = f"{name:<20}{medians['MB']:>7.1f}" + "".join(f"{medians[key]:>12,.0f}" for key in NAMES)
            print(f"{line}{against[0]:>8.1f}{against[1]:>11.0f}", flush=True)
            if number == 0:
                result["limits"] = limits(path, cutouts, 5)
            else:
                path.unlink()
    print("limits: " + ", ".join(f"{name} {figure:,.0f}" for name, figure in result["limits"].items()))
    write("read" if rows == 2500 else f"read_{rows}", result)


if __name__ == "__main__":
    main()
