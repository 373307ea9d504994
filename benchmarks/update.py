"""What an update costs beside the extraction in it.

`python benchmarks/update.py` begins an archive with four cutout files (with tables), and then, in turn, lets
`nenya extract` make the latents of four new files and `nenya update` bring the same four into the archive, each in a
process of its own, start and imports included. It prints seconds, medians of the rounds, and the ratio, and writes
`outputs/bench/update.json`. `--model` is the model version that gives the network, with random weights.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from common import interleave, machine, make_cutouts, medians, write

FILES = 4


def make_files(folder: Path, rows: int, first: int) -> Path:
    """Write four cutout files with their tables."""
    folder.mkdir()
    for number in range(first, first + FILES):
        rng = np.random.default_rng(number)
        name = f"day{number:03d}_preproc"
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["valid"] = make_cutouts(rows, seed=number)
        table = pd.DataFrame({"pp_file": f"{name}.h5", "pp_type": 0, "pp_idx": np.arange(rows)})
        table["lat"], table["lon"] = rng.uniform(-60, 60, rows), rng.uniform(-180, 180, rows)
        table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(number * 24.0, unit="h")
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def seconds(command: str, *args: str) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    line = [sys.executable, "-c", "import sys; from nenya.cli import main; sys.exit(main())", command, *args]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nenya {command}: {done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="cutouts of a file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="v5")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        numbers = itertools.count(step=FILES)
        folders = [make_files(place / f"new{i}", args.rows, next(numbers)) for i in range(args.repeats + 2)]
        weights = save_weights(place / "weights.pth", args.model)
        model = [f"model={args.model}", f"ckpt={weights}"]
        archive = f"archive={place / 'archive'}"
        begin = seconds("update", archive, *model, "k=10", f"new={folders[0]}")
        new = {"extract": iter(folders[1:]), "update": iter(folders[1:])}

        def extract() -> float:
            return seconds("extract", *model, f"data={next(new['extract'])}/*_preproc.h5", f"out={place / 'latents'}")

        def update() -> float:
            return seconds("update", archive, f"new={next(new['update'])}")

        found = interleave({"extract": extract, "update": update}, args.repeats)
        again = seconds("update", archive, f"new={folders[1]}")
    mid = medians(found)
    results = {**mid, "ratio": mid["update"] / mid["extract"], "first call": begin, "nothing new": again}
    for name, value in results.items():
        print(f"{name:12s} {value:8.2f}" + ("" if name == "ratio" else " s"))
    about = {"rows": args.rows, "files": FILES, "repeats": args.repeats, "model": args.model, "all": found}
    write("update", {**results, **about})
    print(machine()["cpu"])


def save_weights(path: Path, model: str) -> Path:
    """Write random weights of a model version."""
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    save_pth(path, make_net(compose("extract", [f"model={model}"])), options={}, epoch=1)
    return path


if __name__ == "__main__":
    main()
