"""Training data, from a file to batches of two views: nenya against the original's loader.

Ours is measured completely: reading and unpacking the file again, then one epoch of batches in random order. A run
of 50 epochs unpacks only once, so `epoch` (without unpacking) is what it sees; `first epoch` includes the
unpacking. The peer runs for a bounded time on each file, in turn with ours, as both feel whatever else the
machine does.

    python benchmarks/loader.py [--quick]
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from nenya.data.augment import ViewSampler
from nenya.data.unpack import load_partition

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, machine, make_cutouts, write
from original_loader import original_loader

SIDE = 64
LAYOUTS = {
    "gzip, automatic chunks": {"compression": "gzip"},
    "uncompressed": {},
    "gzip (1,1,64,64)": {"compression": "gzip", "chunks": (1, 1, SIDE, SIDE)},
    "gzip (64,1,64,64)": {"compression": "gzip", "chunks": (64, 1, SIDE, SIDE)},
}


def ours(path, batch_size, seed):
    """Return the seconds for unpacking, and for one epoch of views, and the number of samples."""
    start = time.perf_counter()
    cutouts = load_partition(path, "train")
    loaded = time.perf_counter()
    generator, sampler = torch.Generator().manual_seed(seed), ViewSampler()
    order = torch.randperm(len(cutouts), generator=generator).numpy()
    for low in range(0, len(order), batch_size):
        rows = np.sort(order[low : low + batch_size])
        sampler.two_views(torch.from_numpy(cutouts[rows])[:, None], generator)
    return loaded - start, time.perf_counter() - loaded, len(cutouts)


def peer(path, batch_size, seconds, seed):
    """Return the samples a second of the original's loader, measured for about `seconds`."""
    start, samples = time.perf_counter(), 0
    for first, _ in original_loader(path, batch_size, seed):
        samples += len(first)
        if time.perf_counter() - start > seconds:
            break
    return samples / (time.perf_counter() - start)


def measure(path, batch_size, repeats, seconds):
    """Measure both in turn; return medians in samples a second."""
    runs = []
    for repeat in range(repeats):
        unpacking, epoch, samples = ours(path, batch_size, repeat)
        runs.append((samples / unpacking, samples / epoch, samples / (unpacking + epoch)))
        runs[-1] += (peer(path, min(batch_size, 64), seconds / repeats, repeat),)
    names = ("unpack", "epoch", "first_epoch", "original")
    return {name: statistics.median(values) for name, values in zip(names, zip(*runs, strict=True), strict=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,500 cutouts and one run instead of 20,000 and three")
    parser.add_argument("--rows", type=int, help="number of cutouts")
    parser.add_argument("--seconds", type=float, help="time for the original, per file and batch size")
    arguments = parser.parse_args()
    rows = arguments.rows or (2500 if arguments.quick else 20_000)
    seconds = arguments.seconds or (5 if arguments.quick else 60)
    repeats = 1 if arguments.quick else 3
    result = {
        "machine": machine() | {"torch_threads": torch.get_num_threads()},
        "rows": rows,
        "repeats": repeats,
        "samples_per_second": {},
    }
    cutouts = make_cutouts(rows)
    print(f"{rows} cutouts of {SIDE} x {SIDE}; samples/s, two views each, median of {repeats}")
    print(f"{'file':<24}{'batch':>6}{'unpack':>9}{'epoch':>9}{'first epoch':>13}{'original':>10}{'ratio':>8}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        for name, layout in LAYOUTS.items():
            path = Path(folder) / "cutouts.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("train", data=cutouts, **layout)
            for batch_size in (64, 256):
                row = measure(path, batch_size, repeats, seconds if batch_size == 64 else seconds / 2)
                result["samples_per_second"][f"{name}, batch {batch_size}"] = row
                ratio = row["first_epoch"] / row["original"]
                print(
                    f"{name:<24}{batch_size:>6}{row['unpack']:>9.0f}{row['epoch']:>9.0f}{row['first_epoch']:>13.0f}"
                    f"{row['original']:>10.1f}{ratio:>7.0f}x",
                    flush=True,
                )
    write("loader", result)


if __name__ == "__main__":
    main()
