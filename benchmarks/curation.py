"""Time and memory of split, audit, outliers, compare and prune on a million rows with a table of 20 columns.

    python benchmarks/curation.py [--rows 1000000] [--only audit split prune] [--folder FOLDER]

Each runs in a process of its own. On a machine with other work the seconds of the processor count, with
OMP_NUM_THREADS=1, as threads that wait for each other use some.

The latents, of 256 dimensions, lie near a curved surface; three in ten are near-copies of others. The granules have 50
rows each. Memory is the largest that a process had, of its own and with the pages of mapped files. Writes
`outputs/bench/curation.json`.
"""

import argparse
import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from analysis import run
from common import machine, write

DIM, BLOCK, GRANULE = 256, 50_000, 50


def make_archive(folder: Path, rows: int) -> None:
    """Write `many_latents.h5` and `many.parquet`."""
    rng = np.random.default_rng(0)
    outward = rng.standard_normal((6, DIM)).astype(np.float32)
    with h5py.File(folder / "many_latents.h5", "w") as file:
        for name, count in (("train", rows - rows // 5), ("valid", rows // 5)):
            data = file.create_dataset(name, (count, DIM), "<f4")
            for start in range(0, count, BLOCK):
                size = min(BLOCK, count - start)
                block = np.tanh(rng.uniform(-2, 2, (size, 6)).astype(np.float32) @ outward)
                block += 0.05 * rng.standard_normal((size, DIM), dtype=np.float32)
                copies, source = rng.permutation(size)[: 3 * size // 10], rng.integers(0, size, 3 * size // 10)
                block[copies] = block[source] + 0.02 * rng.standard_normal((len(copies), DIM), dtype=np.float32)
                data[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    table(rows, rng).to_parquet(folder / "many.parquet")


def table(rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return a table of 20 columns: of granules, places and times of their own, and of their cutouts."""
    valid = rows // 5
    granule = np.arange(rows) // GRANULE
    count = granule[-1] + 1
    lat, lon = np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, count)))[granule], rng.uniform(-180, 180, count)[granule]
    seconds = rng.integers(0, 5 * 10**8, count)[granule].astype("m8[s]")
    return pd.DataFrame(
        {
            "pp_file": "many.h5",
            "pp_type": np.repeat([1, 0], [rows - valid, valid]),
            "pp_idx": np.concatenate([np.arange(rows - valid), np.arange(valid)]),
            "granule": pd.Categorical.from_codes(granule, [f"g{number}" for number in range(count)]).astype(str),
            "lat": np.clip(lat + rng.normal(0, 0.5, rows), -90, 90),
            "lon": lon + rng.normal(0, 0.5, rows),
            "datetime": np.datetime64("2003-01-01T00:00:00", "us") + seconds,
            "sensor": np.array(["VIIRS", "MODIS", "AMSR2"])[rng.integers(0, 3, count)[granule]],
            "row": rng.integers(0, 2000, rows),
            "col": rng.integers(0, 1350, rows),
            "view_angle": rng.uniform(-60, 60, rows),
            "clear_fraction": rng.beta(9, 1, rows),
            "inpainted": rng.uniform(0, 0.1, rows),
            "quality": rng.integers(0, 6, rows),
            "note": np.array([f"n{number}" for number in range(5000)])[rng.integers(0, 5000, rows)],
            "DT": rng.exponential(1.0, rows),
            "slope": rng.normal(-2.5, 0.4, rows),
            "mean_temperature": rng.uniform(0, 30, rows),
            "T10": rng.uniform(0, 30, rows),
            "T90": rng.uniform(0, 30, rows),
        }
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--folder", type=Path, help="keep the files there, and use those that are there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "many.parquet").exists():
            make_archive(folder, given.rows)
        latents, rows = f"{folder}/many_latents.h5", f"{folder}/many.parquet"
        sets = ["a=pp_type = 1", "b=pp_type = 0", "by=[region,season]"]
        commands = {
            "split": ["split", rows, "by=place", "apart_km=100", "apart_days=5", f"latents={latents}"],
            "audit": ["audit", latents, f"table={rows}"],
            "outliers": ["outliers", latents, f"table={rows}"],
            "compare": ["compare", f"data={latents}", f"table={rows}", *sets],
            "prune": ["prune", latents, f"table={rows}", "cosine=0.98"],
            "prune and balance": ["prune", latents, f"table={rows}", "cosine=null", "k=100"],
        }
        found = {}
        for name, args in commands.items():
            if given.only is None or name in given.only:
                suffix = "" if name in ("audit", "compare") else ".parquet"
                load, before = os.getloadavg()[0], os.times()
                made = run([*args, f"out={folder}/{name.replace(' ', '_')}{suffix}", "clobber=true"])
                after = os.times()
                used = after.children_user + after.children_system - before.children_user - before.children_system
                found[name] = {**made, "processor_s": used, "load_before": load, "load": os.getloadavg()[0]}
                print(f"{name:<20}" + "".join(f"{value:>10.2f}" for value in found[name].values()), flush=True)
    write("curation", {"rows": given.rows, "commands": found}, machine())


if __name__ == "__main__":
    main()
