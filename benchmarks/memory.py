"""Memory of extraction against the number of cutouts: peak resident memory of real processes.

`python benchmarks/memory.py` extracts 5,000 and 200,000 generated cutouts with a tiny network and prints the peak
resident memory of each, and their difference, as a table and JSON (`outputs/bench/memory.json`).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import write

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model=demo", "model.width=1", "model.feat_dim=64", "loader.batch_size_valid=500"]


def generate(path: Path, rows: int, side: int, seed: int = 0) -> None:
    """Write `rows` cutouts of white noise, mean 0, a thousand at a time."""
    generator = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("train", (rows, 1, side, side), "<f4", chunks=(min(rows, 250), 1, side, side))
        for start in range(0, rows, 1000):
            block = generator.standard_normal((min(1000, rows - start), 1, side, side), dtype=np.float32)
            data[start : start + 1000] = block - block.mean(axis=(2, 3), keepdims=True)


def make_weights(path: Path) -> None:
    """Write the weights of an untrained tiny network."""
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    save_pth(path, make_net(compose("extract", TINY)), options={}, epoch=0)


def peak(folder: Path, rows: int, side: int) -> tuple[float, float]:
    """Extract `rows` cutouts in a process of its own; return its peak resident memory (MB) and time (s)."""
    data = folder / f"noise_{rows}.h5"
    generate(data, rows, side)
    command = [sys.executable, str(ROOT / "scripts" / "extract.py"), *TINY, f"data={data}", "trainer=cpu"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, f"ckpt={folder / 'tiny.pth'}"], stderr=subprocess.PIPE)
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(said)
    data.unlink()
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def compare(folder: Path, few: int, many: int, side: int) -> dict[str, float]:
    """Return the peaks of both extractions and their difference, in MB."""
    make_weights(folder / "tiny.pth")
    (small, _), (large, seconds) = peak(folder, few, side), peak(folder, many, side)
    return {"few_rows": few, "many_rows": many, "side": side, "few_MB": small, "many_MB": large,
            "difference_MB": large - small, "many_seconds": seconds}  # fmt: skip


def main() -> None:
    """Compare, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=5_000)
    parser.add_argument("--many", type=int, default=200_000)
    parser.add_argument("--side", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), args.few, args.many, args.side)
    for name, value in result.items():
        print(f"{name:15s} {value:10.1f}")
    write("memory", result)


if __name__ == "__main__":
    main()
