"""Placing new rows on a map: rows a second of ours, exact and approximate, of umap-learn's and openTSNE's own.

`python benchmarks/maps.py [--rows 200000] [--new 32768] [--quality 5000] [--tsne PYTHON]`. Also: the share of the
neighbours that the approximate search finds, the share of the rows that it places where the exact way does, how well
places keep neighbourhoods (trustworthiness of the new rows), and the rate against the matrix products that the machine
does. PYTHON is the interpreter of an environment with openTSNE.
"""

import argparse
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from common import interleave, machine, medians, write
from sklearn.manifold import trustworthiness

from nenya.latents.projector import Projector
from nenya.runtime.blas import one_thread_each

DIM, REPEATS, K = 256, 3, 15
PEER = Path(__file__).parent / "peers" / "tsne_transform.py"


def latents(rows: int, seed: int) -> np.ndarray:
    """Make rows of length 1 around a curved surface of eight dimensions: (rows, 256) float32."""
    rng = np.random.default_rng(seed)
    outward = np.random.default_rng(99).standard_normal((8, DIM))
    found = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, 65536):
        count = min(65536, rows - start)
        some = np.tanh(0.5 * rng.standard_normal((count, 8)) @ outward) + 0.1 * rng.standard_normal((count, DIM))
        found[start : start + count] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return found


def rate(place, rows) -> float:
    """Return rows a second."""
    start = time.perf_counter()
    place(rows)
    return len(rows) / (time.perf_counter() - start)


def processor_rate(place, rows) -> float:
    """Return rows a second of one core, by the time that the process has computed."""
    start = time.process_time()
    place(rows)
    return len(rows) / (time.process_time() - start)


def search(projector: Projector, rows: np.ndarray) -> None:
    """Find the neighbours of rows as a transform does, on one core."""
    with one_thread_each():
        projector._lists.search(rows, K)


def product_peak() -> float:
    """Return the GFLOP/s of one core in float32 products, by processor time, of matrices of 2048 a side."""
    a, b = np.random.default_rng(0).random((2, 2048, 2048), np.float32)
    a @ b
    start = time.process_time()
    a @ b
    return 2 * 2048**3 / (time.process_time() - start) / 1e9


def recall(projector: Projector, new: np.ndarray) -> float:
    near = [index.search(new, K)[1] for index in (projector._neighbours, projector._lists)]
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(*near, strict=True)]))


def differences(one: np.ndarray, other: np.ndarray) -> dict:
    """Say how far places are apart."""
    apart = np.linalg.norm(one - other, axis=1)
    quantiles = {"median": float(np.median(apart)), "99th": float(np.percentile(apart, 99))}
    return {"equal": float((one == other).all(axis=1).mean()), **quantiles}


def quality(n_train: int, new: np.ndarray, tsne: str | None) -> dict:
    """Compare with umap-learn on a fit of its own."""
    import umap

    train = latents(n_train, 0)
    mapper = umap.UMAP(random_state=1, n_jobs=1).fit(train)
    projector = Projector.fit(train, embedding=mapper.embedding_)
    reseeded = umap.UMAP(random_state=1, n_jobs=1, transform_seed=7, n_epochs=0, init=mapper.embedding_.astype(float))
    reseeded.fit(train)
    reseeded.embedding_, reseeded.n_epochs = mapper.embedding_, None
    places = {"exact": projector.transform(new), "approximate": projector.transform(new, approximate=True)}
    places["umap-learn"] = mapper.transform(new)
    places["umap-learn, other seed"] = reseeded.transform(new)
    peers = {"umap_learn_rows_per_s": rate(mapper.transform, new[: len(new) // 2])}
    if tsne:
        with tempfile.TemporaryDirectory() as name:
            files = [str(Path(name, file)) for file in ("train.npy", "new.npy", "out.npy")]
            np.save(files[0], train)
            np.save(files[1], new)
            said = subprocess.run([tsne, str(PEER), *files], check=True, capture_output=True, text=True).stdout
            peers["opentsne_rows_per_s"], places["openTSNE"] = float(said), np.load(files[2])
    return {
        "layout_width": float(np.ptp(mapper.embedding_, axis=0).max()),
        "trustworthiness": {name: float(trustworthiness(new, found)) for name, found in places.items()},
        "median_distance_to_umap_learn": {
            name: float(np.median(np.linalg.norm(found - places["umap-learn"], axis=1)))
            for name, found in places.items()
            if name not in ("umap-learn", "openTSNE")
        },
        "approximate_to_exact": {"recall": recall(projector, new), **differences(*list(places.values())[1::-1])},
        **peers,
        "training_rows": n_train,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--new", type=int, default=32_768)
    parser.add_argument("--quality", type=int, default=5_000)
    parser.add_argument("--tsne")
    options = parser.parse_args()
    about = machine()
    train, new = latents(options.rows, 0), latents(options.new, 5)
    projector = Projector.fit(train, embedding=20 * train[:, :2])
    few = new[: min(4096, options.new)]
    places = {  # also compiles, and makes the lists
        "exact": projector.transform(few),
        "approximate": projector.transform(few, approximate=True),
    }
    trust = {name: float(trustworthiness(few, found)) for name, found in places.items()}
    contenders = {
        "exact": lambda: rate(projector.transform, few),
        "approximate": lambda: rate(lambda x: projector.transform(x, approximate=True), new),
        "approximate, of a core": lambda: processor_rate(lambda x: projector.transform(x, approximate=True), new),
        "approximate search alone, of a core": lambda: processor_rate(lambda x: search(projector, x), new),
        "product_gflops_of_a_core": product_peak,
    }
    speed = medians(interleave(contenders, REPEATS))
    lists = projector._lists
    width = lists._integers.shape[1]
    flops = 2 * width * (len(lists.centroids) + lists.probes * options.rows / len(lists.centroids)) + 4 * DIM * width
    results = {
        "training_rows": options.rows,
        "new_rows": options.new,
        "rows_per_s": speed,
        "lists": {"searched": lists.probes, "of": len(lists.centroids), "components": width},
        "mflop_of_products_a_row": flops / 1e6,
        "share_of_product_peak": flops * speed["approximate, of a core"] / speed["product_gflops_of_a_core"] / 1e9,
        "recall": recall(projector, few),
        "approximate_to_exact": differences(places["approximate"], places["exact"]),
        "trustworthiness": trust,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "quality": quality(min(options.rows, options.quality), new[:1500], options.tsne),
        "load_after": os.getloadavg(),
    }
    for key, value in results.items():
        print(key, value)
    write("maps", results, about)


if __name__ == "__main__":
    main()
