"""Near-duplicates among latents: time, and what hashes miss, beside the comparison of all pairs.

`python benchmarks/prune.py 20000 50000` makes unit vectors of 256 dimensions (seeded) near a curved surface, three in
ten of them near-copies of others, and prunes them by all pairs and by hashes. Writes `outputs/bench/prune.json`.
"""

import argparse
import time

import numpy as np
from common import machine, write

from nenya.latents.duplicates import prune

DIM = 256
COSINES = (0.98, 0.95)
MOST = 100_000  # rows up to which all pairs are compared for reference


def made(rows: int, seed: int = 0) -> np.ndarray:
    """Return unit vectors (rows, DIM), float32."""
    rng = np.random.default_rng(seed)
    inner = rng.uniform(-2, 2, (rows, 6))
    found = np.tanh(inner @ np.random.default_rng(99).standard_normal((6, DIM)))
    found += 0.05 * rng.standard_normal((rows, DIM))
    source, copies = rng.integers(0, rows, 3 * rows // 10), rng.permutation(rows)[: 3 * rows // 10]
    found[copies] = found[source] + 0.02 * rng.standard_normal((len(source), DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def measure(rows: np.ndarray, cosine: float, exact_to: int) -> dict[str, float]:
    """Return seconds, rows kept and the stated recall of one way."""
    start = time.perf_counter()
    found = prune(rows, cosine, exact_to=exact_to)
    return {"seconds": time.perf_counter() - start, "kept": int(found.kept.sum()), "recall": found.recall}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[20_000, 50_000, 100_000, 1_000_000])
    results = []
    for count in parser.parse_args().rows:
        rows = made(count)
        for cosine in COSINES:
            ways = {"hashes": 0, **({"all pairs": count} if count <= MOST else {})}
            found = {name: measure(rows, cosine, exact_to) for name, exact_to in ways.items()}
            results.append({"rows": count, "cosine": cosine, **found})
            print(results[-1], flush=True)
    write("prune", {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
