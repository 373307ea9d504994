"""The published generated sets, image side: beta and f_var256 at full size, beside the published values.

`python benchmarks/published_images.py` draws 150,000 + 50,000 fields of 64 x 64 pixels of white noise and of the power
laws n = 2 and 4 (seed 1234, as `nenya generate kind=white|power2|power4` writes them), and takes in one pass, without
writing them: beta by the published recipe (`nenya.data.spectra`), beta without a window as a check of the estimator,
and the share of the variance in the first 256 of 4,096 principal components. It writes
`outputs/bench/published_images.json`.
Nothing here is fitted to the published values: where one is not met, the difference shows it.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
from common import machine, write
from numpy.typing import NDArray

from nenya.data.spectra import PERIODIC, MeanSpectrum, Recipe
from nenya.latents.components import fit_pca
from nenya.prepare.synthetic import SLOPES, published_blocks

SIZE, SEED, COMPONENTS = 64, 1234, 256
PUBLISHED = {  # beta, its error, f_var256
    "white": (0.00, 0.00, 0.077),
    "power2": (2.10, 0.03, 0.636),
    "power4": (4.45, 0.09, 0.993),
}
OTHERS = {  # other readings of the recipe, to show what hangs on them
    "without detrending": Recipe(detrend="none"),
    "a line from each row and column": Recipe(detrend="lines"),
}


def blocks(kind: str, rows: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Yield `train`, then `valid`, as `nenya generate` writes them."""
    for count, sequence in zip(rows, np.random.SeedSequence(SEED).spawn(2), strict=True):
        yield from published_blocks(kind, count, SIZE, sequence)


def measure(kind: str, rows: tuple[int, int], sample: int) -> dict[str, object]:
    """Take all figures of one set in one pass."""
    start, used = time.monotonic(), time.process_time()
    published, periodic = MeanSpectrum(SIZE, Recipe()), MeanSpectrum(SIZE, PERIODIC)
    others = {name: MeanSpectrum(SIZE, recipe) for name, recipe in OTHERS.items()}

    def seen() -> Iterator[NDArray[np.float32]]:
        for block in blocks(kind, rows):
            for spectrum in (published, periodic):
                spectrum.add(block)
            for spectrum in others.values():
                if spectrum.rows < sample:
                    spectrum.add(block)
            yield block.reshape(len(block), -1)

    pca = fit_pca(seen(), COMPONENTS)
    beta, error, share = PUBLISHED[kind]
    f_var = float(pca.explained_variance_ratio.sum())
    return {
        "rows": pca.n_rows,
        "beta": published.slope.beta,
        "beta_error": published.slope.error,
        "beta_published": beta,
        "beta_published_error": error,
        "beta_difference": published.slope.beta - beta,
        "beta_periodic": periodic.slope.beta,
        "beta_periodic_truth": SLOPES[kind],
        "beta_other_readings": {name: spectrum.slope.beta for name, spectrum in others.items()},
        "f_var256": f_var,
        "f_var256_published": share,
        "f_var256_difference": f_var - share,
        "seconds": time.monotonic() - start,
        "cpu_seconds": time.process_time() - used,
    }


def main() -> int:
    """Measure the sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=150_000, help="training cutouts; a third of it for validation")
    parser.add_argument("--sample", type=int, default=20_000, help="cutouts for the other readings of the recipe")
    args = parser.parse_args()
    about, results = machine(), {}
    print(f"{'set':8s} {'beta':>16s} {'published':>14s} {'diff.':>7s} {'no window':>10s} {'f_var256':>9s} publ.  diff.")
    for kind in PUBLISHED:
        r = results[kind] = measure(kind, (args.rows, args.rows // 3), args.sample)
        print(
            f"{kind:8s} {r['beta']:7.3f} +- {r['beta_error']:.3f} {r['beta_published']:7.2f} +- "
            f"{r['beta_published_error']:.2f} {r['beta_difference']:+7.3f} {r['beta_periodic']:10.3f} "
            f"{r['f_var256']:9.4f} {r['f_var256_published']:.3f} {r['f_var256_difference']:+.4f}  {r['seconds']:.0f} s",
            flush=True,
        )
        write("published_images", {"sets": results}, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
