"""Time and memory of each command on latents, on millions of generated rows, in processes of their own.

    python benchmarks/analysis.py [--rows 2000000] [--only metrics embed clusters ...] [--ntrain 5000]

Memory is the largest that a process had at a time: of its own (anonymous), and with the pages of mapped files, which
the system takes back when it needs them. `embed` places all rows on a map that is fitted on `--ntrain` of them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from common import machine, write

ROOT = Path(__file__).resolve().parents[1]
DIM = 256
CALL = "import sys; from nenya.cli import main; sys.exit(main())"


def make_archive(folder, rows):
    """Write latents (rows, 256), unit vectors around 200 directions, and their table."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((200, DIM)).astype(np.float32)
    with h5py.File(folder / "many_latents.h5", "w") as file:
        data = file.create_dataset("train", (rows, DIM), "<f4")
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            block = directions[rng.integers(200, size=count)] + rng.standard_normal((count, DIM), dtype=np.float32)
            data[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    pd.DataFrame(
        {
            "pp_file": pd.Categorical.from_codes(np.zeros(rows, np.int8), ["many.h5"]),
            "pp_type": np.ones(rows, np.int64),
            "pp_idx": np.arange(rows),
            "lat": rng.uniform(-60, 60, rows),
            "lon": rng.uniform(-180, 180, rows),
            "datetime": np.datetime64("2003-01-01T00:00:00", "us") + rng.integers(0, 5 * 10**8, rows).astype("m8[s]"),
            "DT": rng.exponential(1.0, rows),
            "US0": rng.standard_normal(rows),
            "US1": rng.standard_normal(rows),
        }
    ).to_parquet(folder / "many.parquet")


def memory(pid):
    """Return the bytes that a process holds: anonymous, all."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = {
        line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.startswith("Rss") or "VmRSS" in line
    }
    return 1024 * int(found.get("RssAnon", 0)), 1024 * int(found.get("VmRSS", 0))


def run(args):
    """Run a command of nenya; return its seconds and largest memory."""
    start, peaks = time.perf_counter(), (0, 0)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", CALL, *args], stderr=said, stdout=said, cwd=ROOT)
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory(process.pid)))
            time.sleep(0.02)
        said.seek(0)
        if process.returncode:
            raise RuntimeError(said.read())
    return {
        "seconds": time.perf_counter() - start,
        "anonymous_GB": peaks[0] / 1e9,
        "with_mapped_files_GB": peaks[1] / 1e9,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--ntrain", type=int, default=5_000)
    parser.add_argument("--only", nargs="+")
    arguments = parser.parse_args()
    result = {"rows": arguments.rows, "ntrain": arguments.ntrain, "commands": {}}
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_archive(folder, arguments.rows)
        both = [f"data={folder}/many_latents.h5", f"table={folder}/many.parquet"]
        commands = {
            "statistics": ["statistics", both[1], "where=DT > 2", f"out={folder}/statistics.csv"],
            "figures": ["figures", both[1], "kind=map", "metric=DT", f"out={folder}/map.png"],
            "search": ["search", *both, "like=5", "where=DT > 1"],
            "clusters": ["clusters", *both, "k=20", f"out={folder}/groups.parquet"],
            "metrics": ["metrics", *both, f"out={folder}/metrics"],
            "embed": ["embed", *both, f"ntrain={arguments.ntrain}", f"out={folder}/map.parquet"],
            "index": ["index", *both, f"out={folder}/archive.index"],
        }
        print(f"{arguments.rows:,} latents of {DIM}; seconds, GB of its own, GB with mapped files")
        for key, args in commands.items():
            if arguments.only is None or key in arguments.only:
                found = result["commands"][key] = run(args)
                print(f"{key:<12}" + "".join(f"{value:>10.2f}" for value in found.values()), flush=True)
    write("analysis", result, about)


if __name__ == "__main__":
    main()
