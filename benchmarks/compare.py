"""Comparison of two sets of latents: known differences that are found with so many cutouts, and the time of a million.

`python benchmarks/compare.py --ckpt outputs/demo/run/last.pth` (of `nenya demo`) generates pairs of ocean-like sets
that differ in one known way and reports the share of seeds in which energy distance or AUC finds it (2 p <= 0.05); then
it draws three classes of eddy sizes, takes the smallest one out of b, and reports which share of the cutouts with the
highest density ratio are of that class. `--rows 1000000` measures time and peak memory of two sets of so many rows of
256 dimensions. Writes `outputs/bench/compare.json`, after each seed.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from nenya.latents.difference import Estimate, compare_sides
from nenya.latents.files import Latents
from nenya.prepare import ocean

Change = Callable[[dict[str, np.ndarray]], None]

KINDS: dict[str, tuple[Change, float | None, float | None]] = {  # of b; noise of a and of b in K, None: as drawn
    "nothing": (lambda columns: None, None, None),
    "slope + 0.3": (lambda columns: columns.update(true_slope=columns["true_slope"] + 0.3), None, None),
    "anisotropy x 2": (lambda columns: columns.update(true_anisotropy=columns["true_anisotropy"] * 2), None, None),
    "noise 0 to 0.05 K": (lambda columns: None, 0.0, 0.05),
}
CLASSES = (0.16, 0.4, 1.0)  # eddy sizes over the side of a cutout
DIM = 256


@dataclass
class Drawn:
    """Cutouts without noise (n, S, S), their noise in K, snapshots and eddy sizes in pixels, (n,) each."""

    cutouts: np.ndarray
    noise: np.ndarray
    snapshots: np.ndarray
    eddies: np.ndarray

    def noisy(self, seed: int, noise: float | None = None) -> np.ndarray:
        """Return the cutouts with their own noise or with so much, (n, 1, S, S)."""
        white = np.random.default_rng(seed).standard_normal(self.cutouts.shape)
        found = self.cutouts + (self.noise if noise is None else np.full(len(self.noise), noise))[:, None, None] * white
        return (found - found.mean(axis=(1, 2), keepdims=True)).astype(np.float32)[:, None]


def draw(rows: int, seed: int, change: Change, size: int) -> Drawn:
    """Draw an ocean with changed parameters."""
    parameters, noise = ocean._parameters, []

    def changed(count, rng, pixels):
        columns = parameters(count, rng, pixels)
        change(columns)
        noise.append(columns["true_noise"])
        return columns | {"true_noise": np.zeros(count)}

    ocean._parameters = changed
    try:
        blocks = list(ocean.ocean_blocks(rows, np.random.SeedSequence(seed), ocean.OceanOptions(size)))
    finally:
        ocean._parameters = parameters
    cutouts, names, eddies = (
        np.concatenate(parts)
        for parts in zip(
            *((b.cutouts, b.columns["filename"], b.columns["true_eddy_size"]) for b in blocks), strict=True
        )
    )
    return Drawn(cutouts, np.concatenate(noise)[:rows], pd.factorize(names)[0].astype(np.int64), eddies)


def set_of(drawn: Drawn, args, seed: int, noise: float | None = None) -> Side:
    """Return the latents of cutouts, with snapshots as blocks."""
    latents = np.asarray(get_latents(drawn.noisy(seed, noise), args.ckpt, args.options, side=0)[0], np.float64)
    assert np.isfinite(latents).all()
    return side(latents, 10**6 * seed + drawn.snapshots)


def p_of(found: dict[str, Estimate]) -> float:
    """Return the p-value with which a difference is stated: of energy distance or AUC, the smaller one counts twice."""
    return min(1.0, 2 * min(found["energy"].p, found["auc"].p))


def power(args, seed: int) -> list[dict]:
    """Return the p-values of one pair of sets for each difference and size."""
    most, found = max(args.sizes), []
    first = draw(most, 1000 * seed, KINDS["nothing"][0], args.size)
    for kind, (change, *noise) in KINDS.items():
        other = draw(most, 1000 * seed + 1, change, args.size)
        a, b = (set_of(d, args, 2 * seed + n, noise[n]) for n, d in enumerate((first, other)))
        for rows in args.sizes:
            one = compare_sides(
                *(some.rows(np.arange(rows)) for some in (a, b)), permutations=args.permutations, seed=seed
            )
            values = {name: one[name].p for name in ("energy", "auc", "coverage_of_b", "density")}
            found.append({"kind": kind, "rows": rows, "seed": seed, "p": p_of(one), **values, "area": one["auc"].value})
            print(found[-1], flush=True)
    return found


def missing(args, seed: int) -> dict:
    """Draw three classes of eddy sizes, take the smallest one out of b, and see what the density ratio names."""

    def classes(columns):
        numbers = np.arange(len(columns["lat"])) % len(CLASSES)
        jitter = np.exp(np.random.default_rng(len(numbers)).normal(0, 0.05, len(numbers)))
        columns.update(true_eddy_size=args.size * np.array(CLASSES)[numbers] * jitter)

    limit = args.size * (CLASSES[0] + CLASSES[1]) / 2
    rows = min(2000, max(args.sizes))
    first, other = (draw(rows, 2000 * seed + 7 + n, classes, args.size) for n in range(2))
    a, b = (set_of(d, args, 2 * seed + n) for n, d in enumerate((first, other)))
    b = b.rows(other.eddies > limit)
    pool = pool_of(a, b)
    sample = reference(pool, np.concatenate([a.blocks, b.blocks])[pool.source])
    ratio = density_ratios(np.asarray(a.values), a.blocks, True, sample)
    named = np.argsort(-ratio, kind="stable")[: args.shown]
    taken = first.eddies <= limit
    found = {"seed": seed, "named": args.shown, "of_the_missing_class": float(taken[named].mean())}
    found["share_of_the_class"] = float(taken.mean())
    print(found, flush=True)
    return found


def table_of(found: list[dict]) -> list[dict]:
    """Return for each difference and size the share of seeds that find it, and the median p-value."""
    rows = pd.DataFrame(found).groupby(["kind", "rows"], sort=False)["p"]
    columns = rows.agg(found=lambda p: float((p <= 0.05).mean()), median_p="median", seeds="count")
    return columns.reset_index().to_dict("records")


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
    parser.add_argument("--shown", type=int, default=32, help="cutouts named as missing, as in a gallery")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the timing; 0: none")
    args = parser.parse_args()
    about, results = machine(), {}
    if args.rows:
        results["timing"] = timing(args.rows)
    if args.ckpt:
        args.options = compose("extract", [f"model={args.model}"])
        results |= {"missing": [missing(args, seed) for seed in range(args.seeds)], "pairs": []}
        for seed in range(args.seeds):
            results["pairs"] += power(args, seed)
            results["power"] = table_of(results["pairs"])
            write("compare", results, about)  # after each seed: all of them take long
    write("compare", results, about)
    print(pd.DataFrame(results.get("power", [])).to_string())


if __name__ == "__main__":
    main()
