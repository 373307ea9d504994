"""Comparison of two sets of latents: known differences that are found with so many cutouts, and the time of a million.

`python benchmarks/compare.py --ckpt outputs/demo/run/last.pth` (of `nenya demo`) generates pairs of ocean-like sets
that differ in one known way and reports the share of seeds in which energy distance or AUC finds it (2 p <= 0.05); then
it removes the class of the smallest eddies from b and reports which share of the cutouts with the highest density ratio
are of that class. `--rows 1000000` measures time and peak memory of two sets of so many rows of 256 numbers. Writes
`outputs/bench/compare.json`.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from common import machine, write

from nenya.analyze_image import get_latents
from nenya.commands.compose import compose
from nenya.latents.block_null import Side, pool_of, side
from nenya.latents.comparison import Settings, compare, density_ratio, two_sets
from nenya.latents.density_ratio import density_ratios, reference
from nenya.latents.difference import compare_sides
from nenya.latents.files import Latents
from nenya.prepare import ocean

KINDS = {
    "nothing": lambda columns: None,
    "slope + 0.3": lambda columns: columns.update(true_slope=columns["true_slope"] + 0.3),
    "anisotropy x 2": lambda columns: columns.update(true_anisotropy=columns["true_anisotropy"] * 2),
    "noise 0 to 0.05 K": None,  # both sets are changed
}
DIM = 256


def draw(rows: int, seed: int, change, size: int):
    """Return cutouts (rows, 1, size, size), their snapshots (rows,) and eddy sizes, drawn with other parameters."""
    drawn = ocean._parameters

    def changed(count, rng, pixels):
        columns = drawn(count, rng, pixels)
        change(columns)
        return columns

    ocean._parameters = changed
    try:
        options = ocean.OceanOptions(size)
        blocks = list(ocean.ocean_blocks(rows, np.random.SeedSequence(seed), options))
    finally:
        ocean._parameters = drawn
    names = np.concatenate([block.columns["filename"] for block in blocks])
    eddies = np.concatenate([block.columns["true_eddy_size"] for block in blocks])
    return np.concatenate([block.cutouts for block in blocks])[:, None], names, eddies


def encode(cutouts: np.ndarray, args) -> np.ndarray:
    return np.asarray(get_latents(cutouts, args.ckpt, args.options, side=0)[0], np.float64)


def set_of(rows: int, seed: int, change, args, first: int) -> tuple[Side, np.ndarray]:
    cutouts, names, eddies = draw(rows, seed, change, args.size)
    latents = encode(cutouts, args)
    return side(latents, first + pd.factorize(names)[0].astype(np.int64)), eddies[np.isfinite(latents).all(axis=1)]


def power(args) -> list[dict]:
    found = []
    for kind, change in KINDS.items():
        both = [
            lambda c: c.update(true_noise=0 * c["true_noise"]),
            lambda c: c.update(true_noise=0 * c["true_noise"] + 0.05),
        ]
        changes = both if change is None else [KINDS["nothing"], change]
        for rows in args.sizes:
            hits = []
            for seed in range(args.seeds):
                a, b = (set_of(rows, 1000 * seed + n, change, args, n * 10**6)[0] for n, change in enumerate(changes))
                one = compare_sides(a, b, permutations=args.permutations, seed=seed)
                hits.append(2 * min(one["energy"].p, one["auc"].p) <= 0.05)
            found.append({"kind": kind, "rows": rows, "found": float(np.mean(hits)), "seeds": args.seeds})
            print(found[-1])
    return found


def missing(args) -> dict:
    """Take the smallest tenth of the eddies out of b, and see what the density ratio names."""
    shares = []
    for seed in range(args.seeds):
        a, eddies = set_of(max(args.sizes), 2000 * seed + 7, KINDS["nothing"], args, 0)
        b, others = set_of(max(args.sizes), 2000 * seed + 8, KINDS["nothing"], args, 10**6)
        limit = np.quantile(eddies, 0.1)
        b = b.rows(others > limit)
        pool = pool_of(a, b)
        sample = reference(pool, np.concatenate([a.blocks, b.blocks])[pool.source])
        ratio = density_ratios(np.asarray(a.values), a.blocks, True, sample)
        named = np.argsort(-ratio)[: len(ratio) // 50]
        shares.append(float((eddies[named] <= limit).mean()))
    found = {"share_of_named_that_are_of_the_missing_class": shares}
    print(found)
    return found


def timing(rows: int) -> dict:
    """Compare two sets of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        latents, tables = [], []
        for name, shift in (("a", 0.0), ("b", 0.1)):
            path, rng = Path(folder) / f"{name}_latents.h5", np.random.default_rng(ord(name))
            with h5py.File(path, "w") as file:
                data = file.create_dataset("valid", (rows, DIM), "f4")
                for start in range(0, rows, 16384):
                    block = rng.standard_normal((min(16384, rows - start), DIM), dtype=np.float32)
                    block[:, 0] += shift
                    data[start : start + len(block)] = block
                file.attrs["checkpoint_sha256"] = "ab" * 32
            latents.append(Latents([path]))
            columns = {"granule": [f"{name}{i // 200}" for i in range(rows)]}
            columns |= {quantity: rng.standard_normal(rows) for quantity in ("DT", "slope", "mean_temperature")}
            tables.append(latents[-1].keys().assign(**columns))
        settings, start = Settings(), time.perf_counter()
        sets = two_sets((latents[0], latents[1]), (tables[0], tables[1]), settings)
        compare(sets, settings)
        middle = time.perf_counter()
        density_ratio(sets, settings)
        done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"rows": rows, "compare_s": middle - start, "density_ratio_s": done - middle, "peak_GiB": peak}
    print(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", help="weights of the demo; without it only the time is measured")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the timing; 0: none")
    args = parser.parse_args()
    about, results = machine(), {}
    if args.ckpt:
        args.options = compose("extract", [f"model={args.model}"])
        results |= {"power": power(args), "missing": missing(args)}
    if args.rows:
        results["timing"] = timing(args.rows)
    write("compare", results, about)


if __name__ == "__main__":
    main()
